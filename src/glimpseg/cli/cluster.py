"""Verbs `on slurm` and `on ray`: segment a tree of studies on a cluster.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from glimpseg.cli.app import app
from glimpseg.cli.options import Overwrite, Resume, TreeOptions, changes_of, takes_options
from glimpseg.cli.segment import conclude
from glimpseg.segmentation.options import InferenceOptions, OutputOptions

on = typer.Typer(help="Segment a tree of studies on a cluster.", no_args_is_help=True)
app.add_typer(on, name="on")


@on.command()
@takes_options
def slurm(
    tree: TreeOptions,
    inference: InferenceOptions,
    outputs: OutputOptions,
    shards: Annotated[int, typer.Option("--shards", "--parts", min=1, help="Number of jobs that share the tree.")] = 8,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            help="Request of each job: --slurm slurm_partition=gpu --slurm gpus_per_node=1. Can be repeated.",
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment a tree as an array of Slurm jobs, and wait for them."""
    from glimpseg.batch.on_slurm import Jobs, segment_on_slurm
    from glimpseg.batch.progress import FAILURES

    spec = tree.job_spec(inference, outputs)
    jobs = Jobs(shards=shards, options=changes_of(ask, "--slurm"))
    conclude(spec.output, segment_on_slurm(spec, jobs, resume=resume, overwrite=overwrite), FAILURES)


@on.command()
@takes_options
def ray(
    tree: TreeOptions,
    inference: InferenceOptions,
    outputs: OutputOptions,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that hold the model.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, help="Processors of each worker.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker; with 0.5 two share one.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="Address of a running cluster, or auto. Default: RAY_ADDRESS, else this machine.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment a tree with Ray."""
    from glimpseg.batch.on_ray import Workers, segment_on_ray
    from glimpseg.batch.progress import FAILURES

    spec = tree.job_spec(inference, outputs)
    resources = Workers(count=workers, cpus=cpus, gpus=gpus, address=address)
    conclude(spec.output, segment_on_ray(spec, resources, resume=resume, overwrite=overwrite), FAILURES)
