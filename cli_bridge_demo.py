"""What `latelier demo bridge` says."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .cli_common import make_console

if TYPE_CHECKING:
    from .training import Recipe


def show_bridge_demo(out: Path, train: "Callable[[Recipe, Path], object]", *, device: str | None) -> None:
    """Run the demo of bridges, show its tables, and what a new stem reaches."""
    from .evaluation import bridge_gain, results_table, share_of_gain
    from .recipes.bridge_demo import bridge_demo

    console = make_console()
    found = bridge_demo(out, train=train, device=device, say=lambda text: console.print(text, highlight=False))
    for result in found.results.values():
        console.print(results_table([result]))
    whole, stem = found.results["bridge"], found.results["stem"]
    gain = bridge_gain(whole)
    console.print(f"\nthe bridge's error is {100 * gain:.0f} % below the linear baseline's", highlight=False)
    if gain > 0:
        share = f"{100 * share_of_gain(stem, whole):.0f} % of that gain in another latent space"
        console.print(f"a new stem before its frozen body reaches {share}", highlight=False)
    console.print(f"report:  {found.report.resolve()}", highlight=False)
    console.print(f"bridge:  {out / 'bridge' / 'model'}", highlight=False)
