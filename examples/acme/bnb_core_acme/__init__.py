"""A backend of bnb_core for `acme`, a simulated accelerator."""
