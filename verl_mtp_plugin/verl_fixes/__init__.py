"""What verl 0.9 does right around MTP, for verl 0.7.1 and 0.8.0; and what no release does yet."""
