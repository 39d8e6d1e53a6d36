"""The LightningModules, their data, and what runs beside them."""
