"""One optimizer step of verl: its trained tokens counted before it, its MTP metrics reported after it."""
