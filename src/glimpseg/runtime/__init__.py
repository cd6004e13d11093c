"""Process, files and hardware: atomic writes, sandboxed readers, SIGTERM, distributed ranks, precision."""
