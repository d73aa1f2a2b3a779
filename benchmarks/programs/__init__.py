"""Programs that measure by themselves, in a process of their own: the request in a file, the result in another."""
