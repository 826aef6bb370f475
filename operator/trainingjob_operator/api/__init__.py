"""The TrainingJob resource: models of spec and status, and the CRD made from them."""
