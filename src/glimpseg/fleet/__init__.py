"""A tree of studies handed to an engine that others run: Slurm, Ray. Each study is segmented and written by `work`."""
