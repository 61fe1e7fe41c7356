"""Runs side by side: what differs, what each has seen and reached, and what that says about pre-training."""
