"""Questions with contexts as rows to augment: words outside the answers change, answers move."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from transformer.augmentation.algorithm import Variant
from transformer.augmentation.words import Text
from transformer.tasks.files import Row
from transformer.tasks.questions import Question, QuestionReader
from transformer.tasks.table import Task

CONTEXT = 1  # the number of its column


class AnsweredRows:
    """The questions of a file, with the members of `RowReader` that augmentation uses."""

    text_keys = (0, CONTEXT)

    def __init__(self, path: Path, task: Task, *, errors: str) -> None:
        self.path = path
        self._reader = QuestionReader(path, task, errors=errors)
        self._names = (*task.text, task.label)

    def every_row(self) -> Iterator[Row]:
        """Yield the questions that can be used; the others are counted."""
        return (Row(question.line, question) for question in self._reader)

    def texts(self, cells: Question) -> tuple[str, str]:
        """Return question and context."""
        return cells.question, cells.context

    def replaceable(self, cells: Question, column: int, text: Text) -> Text:
        """Return the text without those of its words that an answer holds some of."""
        if column != CONTEXT:
            return text
        bounds = [(start, start + len(answer)) for answer, start in cells.answers]
        words = []
        for word in text.words:
            start, end = text.spans[word.token]
            if not any(start < stop and end > first for first, stop in bounds):
                words.append(word)
        return text._replace(words=tuple(words))

    def variant(
        self, cells: Question, column: int, text: Text, variant: Variant, rng: random.Random
    ) -> Question:
        """Return the question with a variant of one of its texts, its answers where they are now.

        Args:
            text: what the variant was made of.
            rng: not read.
        """
        if column != CONTEXT:
            return cells._replace(question=variant.text)
        longer = {
            text.spans[token]: len(word) - (text.spans[token][1] - text.spans[token][0])
            for token, word in variant.choice.items()
        }
        answers = tuple(
            (answer, start + sum(more for (_, end), more in longer.items() if end <= start))
            for answer, start in cells.answers
        )
        return cells._replace(context=variant.text, answers=answers)

    def format_header(self) -> str:
        """Return the header: JSON lines have none."""
        return ""

    def format_row(self, cells: Question) -> str:
        """Return the question as a line of JSON."""
        question, context, answers = self._names
        spans = {
            "text": [text for text, _ in cells.answers],
            "answer_start": [start for _, start in cells.answers],
        }
        row = {"id": cells.id, question: cells.question, context: cells.context, answers: spans}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def check_left_out(self, allow_short: bool) -> str:
        """Return what the last reading used; UserError if that is too little."""
        return self._reader.check_left_out(allow_short)
