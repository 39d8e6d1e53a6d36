"""The command `dadpo`."""
