"""How far a student is from its teacher on held-out prompts, with intervals."""
