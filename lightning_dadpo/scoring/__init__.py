"""What frozen models give to pairs: live or from disk, behind one seam, and the audits of it."""
