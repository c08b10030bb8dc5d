"""GenEval's prompts as questions with yes for an answer, for judges that answer questions instead of seeing boxes."""

from __future__ import annotations

from collections.abc import Iterator

from oneflow_core.metrics.geneval import GenEvalPrompt, Wanted

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def questions_of(prompt: GenEvalPrompt) -> list[str]:
    """Questions that must all be answered yes of a right picture."""
    exact = {clause.label for clause in prompt.exclude}
    asked = [q for clause in prompt.include for q in _questions(clause, prompt, clause.label in exact)]
    return list(dict.fromkeys(asked))


def _questions(clause: Wanted, prompt: GenEvalPrompt, exact: bool) -> Iterator[str]:
    if exact or clause.count > 1:
        number = NUMBERS.get(clause.count, str(clause.count))
        how = "exactly" if exact else "at least"
        verb, name = ("Is", clause.label) if clause.count == 1 else ("Are", _plural(clause.label))
        yield f"{verb} there {how} {number} {name} in the picture?"
    else:
        yield f"Is there {_one(clause.label)} in the picture?"
    if clause.colour:
        yield f"Is the {clause.label} {clause.colour}?"
    if clause.relation:
        other = prompt.include[clause.target].label
        joined = {"left of": "to the left of", "right of": "to the right of"}.get(
            clause.relation, clause.relation
        )
        yield f"Is the {clause.label} {joined} the {other}?"


def _one(label: str) -> str:
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def _plural(label: str) -> str:
    return f"{label}es" if label.endswith(("s", "sh", "ch", "x")) else f"{label}s"
