"""Tickets that leave: one trained sparse network with its mask, as files for plain PyTorch; unmask
is asked for the class alone, where it is one of its own networks."""

from pathlib import Path

import safetensors.torch

from .chains import CONTROLS, Place
from .errors import UnmaskError
from .experiments import PRESETS
from .lab import Lab
from .remote import reaching
from .store import TENSORS, commit, write_atomically


def export(lab: Lab, place: Place, folder: Path) -> Path:
    """Write the network at a place to `folder`: `ticket.safetensors`, and a card that says what it
    is and loads it.
    Raises UnmaskError: it was not trained yet, or the folder has a README.md of something else, or
    cannot be written."""
    e, level = lab.experiment, place.level
    if lab.name(place) + TENSORS not in lab.store:
        more = "" if place.seed in e.all_seeds else f" --set first_seed={place.seed} --set seeds=1"
        if place.kind != "imp" and place.rewind_step != e.latest:  # they are trained from the last
            more += f" --set rewind_steps={place.rewind_step}"
        if place.kind in CONTROLS and level not in e.control_levels:
            more += f" --set control_every={level}"
        said = f"is not in {lab.store.root} yet; `unmask run {e.preset}{more}` trains it, with all"
        raise UnmaskError(f"{place}: {said} other settings as here")
    (ticket,) = lab.tickets([place])
    preset, ours = vars(PRESETS[e.preset]), vars(e)
    changes = {name: value for name, value in ours.items() if value != preset[name]}
    about = {
        "data, network": f"{e.dataset}, {e.network}",
        "preset, changes": f"{e.preset}, {changes or 'none'}",
        "recipe": e.recipe,
        "weights left": f"{lab.survivors(level):,} of {lab.total:,} ({lab.density(level):.2%})",
        "test error": f"{lab.evaluate(ticket.state).error:.2%}",
        "trained by": f"unmask, commit {lab.store.provenance(lab.name(place) + TENSORS)['commit']}",
        "exported by": f"unmask, commit {commit()}",
    }
    arguments = ", ".join([repr(e.preset), *(f"{k}={v!r}" for k, v in changes.items())])
    network = f"import unmask\n\nnetwork = unmask.networks.build(unmask.experiment({arguments}))"
    where, _, name = e.network.rpartition(":")
    if where == "torchvision":
        network = f"from torchvision.models import get_model\n\nnetwork = get_model({name!r}, "
        network += f"weights=None, num_classes={e.classes})"
    elif where == "timm":
        network = f"import timm\n\nnetwork = timm.create_model({name!r}, "
        network += f"num_classes={e.classes}, in_chans={e.channels})"
    elif where.endswith(".py"):  # run where that file is found
        file = str(Path(where).expanduser())
        network = f"import runpy\n\nnetwork = runpy.run_path({file!r})[{name!r}]()"
    elif where:
        network = f"from {where} import {name} as build\n\nnetwork = build()"
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    card = Path(__file__).with_name("ticket.md").read_text()
    card = card.format(title=place, rows=rows, network=network)
    with reaching("output", folder):
        if (folder / "README.md").exists() and not (folder / f"ticket{TENSORS}").exists():
            raise UnmaskError(f"output={str(folder)!r}: has a README.md of something else")
        write_atomically(folder / f"ticket{TENSORS}", safetensors.torch.save(ticket.tensors()))
        write_atomically(folder / "README.md", card.encode())
    return folder
