"""Rows of POPE (Li et al. 2023, arXiv 2305.10355), questions whether a thing is in a picture, as rows of LLaVA JSON."""

from minillava.errors import UserError

POPE = "pope"  # the type of such a row


def is_pope(row: dict) -> bool:
    """Whether ``row`` is like {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in it?", "label": "no"}."""
    return "conversations" not in row and {"text", "label"} <= row.keys()


def from_pope(row: dict) -> dict:
    """A row of POPE -> the same as a row of LLaVA JSON. Raises UserError."""
    if row["label"] not in ("yes", "no") or not isinstance(row["text"], str):
        raise UserError("'text' must be a question and 'label' must be 'yes' or 'no', as in POPE's files")
    question = {"from": "human", "value": f"<image>\n{row['text']}"}
    answer = {"from": "gpt", "value": row["label"]}
    return {"id": row.get("question_id"), "image": row.get("image"), "type": POPE, "conversations": [question, answer]}
