"""The verbs `on slurm` and `on ray`: a tree of studies segmented on a cluster.

They take the options of `segment`, so that there is one way to say how a tree is segmented. Heavy modules are imported
inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimpseg.cli.app import app
from glimpseg.cli.options import changes_of
from glimpseg.cli.segment import conclude, wanted_of
from glimpseg.errors import UsageError
from glimpseg.model.shipped import BOX

if TYPE_CHECKING:
    from glimpseg.batch.job_spec import Order

on = typer.Typer(help="Segment a tree of studies on a cluster.", no_args_is_help=True)
app.add_typer(on, name="on")

OTHERS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What a verb does not know is for `segment`."""
HOW = ("labels", "output_type", "grid", "probabilities", "deidentify", "raw", "uncertainty")
ONE = {
    "t1": "--t1",
    "t1c": "--t1c",
    "t2": "--t2",
    "flair": "--flair",
    "series": "--series",
    "brain_mask": "--brain-mask",
}
"""Options of `segment` that are of one study."""


@on.command(context_settings=OTHERS)
def slurm(
    context: typer.Context,
    parts: Annotated[int, typer.Option(min=1, help="How many jobs share the tree.")] = 8,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            help="What each job asks for: --slurm slurm_partition=gpu --slurm gpus_per_node=1. Repeat at will.",
        ),
    ] = None,
) -> None:
    """Segment a tree as an array of Slurm jobs, and wait for them. All other options are those of `segment`."""
    from glimpseg.batch.on_slurm import Jobs, segment_on_slurm
    from glimpseg.batch.progress import FAILURES

    order, given = _order(context.args)
    jobs = Jobs(parts=parts, options=changes_of(ask, "--slurm"))
    outcome = segment_on_slurm(order, jobs, go_on=given["go_on"], overwrite=given["overwrite"])
    conclude(order.output, outcome, FAILURES)


@on.command(context_settings=OTHERS)
def ray(
    context: typer.Context,
    workers: Annotated[int, typer.Option(min=1, help="How many processes hold the model.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, help="Processors of each.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each; 0.5 lets two share one.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="Of a running cluster, or auto. Default: RAY_ADDRESS, else this machine.")
    ] = None,
) -> None:
    """Segment a tree with Ray. All other options are those of `segment`."""
    from glimpseg.batch.on_ray import Workers, segment_on_ray
    from glimpseg.batch.progress import FAILURES

    order, given = _order(context.args)
    hands = Workers(count=workers, cpus=cpus, gpus=gpus, address=address)
    outcome = segment_on_ray(order, hands, go_on=given["go_on"], overwrite=given["overwrite"])
    conclude(order.output, outcome, FAILURES)


def _order(arguments: list[str]) -> tuple[Order, dict[str, Any]]:
    """What the options of `segment` say, read as `segment` reads them. Raises: UsageError."""
    from glimpseg.batch.job_spec import Order

    command: Any = typer.main.get_command(app)
    with command.commands["segment"].make_context("segment", list(arguments)) as context:
        given: dict[str, Any] = dict(context.params)
    single = [option for name, option in ONE.items() if given[name] is not None]
    if single or given["source"] is None:
        raise UsageError(f"A cluster segments trees: name one with -i{f', without {single[0]}' if single else ''}.")
    if given["part"] != "0/1":
        raise UsageError("A cluster shares a tree by itself. Leave --part out.")
    order = Order(
        source=Path(given["source"]).absolute(),
        output=Path(given["output"]).absolute(),
        model=given["model"] if given["model"] == BOX else str(Path(given["model"]).absolute()),
        wanted=wanted_of(*(given[name] for name in HOW)),
        layout=given["layout"],
        device=given["device"],
        choices=changes_of(given["change"]),
        backend=given["backend"],
    )
    return order, given
