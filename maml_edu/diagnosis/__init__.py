"""`diagnose` says in words what a meta-gradient function computes."""
