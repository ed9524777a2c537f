"""SGLang behind verl: the server that is drained before it releases memory, and what happens in its schedulers."""
