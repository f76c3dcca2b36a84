"""Do two runs of the same seeds agree?"""

from scipy import stats

from unmask.store import processor, versions
from unmask.verdicts import FAILS, HOLDS, Verdicts

ALARM = 0.001  # how often they may be told apart by chance, for each claim


def made_alike(about: dict) -> bool:
    """Was all of it computed on a processor like this one, by the same versions? Then what this
    machine computes is the same to the last bit."""
    here = {"processor": processor(), "versions": versions()}
    return all(one[what] == here[what] for one in about["instalments"] for what in here)


def disagreements(here: Verdicts, there: Verdicts, same_bits: bool, spreads: Verdicts) -> list[str]:
    """Claims on which two runs of the same seeds contradict each other, each in a line.

    With `same_bits`, every number has to be the same. Else the mean difference of the seeds'
    numbers is held against what retraining can do: the standard deviation over the seeds of
    `spreads`, a run of at least as many, which retraining is a part of. One in a thousand
    (`ALARM`) differs by chance; and nothing that holds here may fail there."""
    found = []
    others, wider = ({one.claim: one for one in run.evidence} for run in (there, spreads))
    for one in here.evidence:
        other, known = others[one.claim], wider[one.claim].values
        shared = one.values.index.intersection(other.values.index)
        moved = one.values[shared] - other.values[shared]
        words = f"{one.claim}: {one.words()} here, {other.words()} there"
        if same_bits:
            if not one.values.equals(other.values):
                found.append(words)
            continue
        if {one.verdict, other.verdict} == {HOLDS, FAILS}:
            found.append(words)
        elif len(shared) and len(known) > 2 and known.std() > 0:
            t = abs(moved.mean()) / (known.std() * (2 / len(shared)) ** 0.5)
            if 2 * stats.t.sf(t, len(known) - 1) < ALARM:
                found.append(words)
    return found
