"""A corpus and questions as somebody else would write them: Search-R1's wiki-18 rows, ids under several names, other words."""

import json
import random
from pathlib import Path

TOWNS = ("Kessford", "Maple Ridge", "Saint Oswin", "Tarn-on-Wye", "Ågersund", "Vîlnes", "Ostrava Bay", "Lower Quill")
PEOPLE = ("Margaret Holloway", "Tobias Lindqvist", "Inês Carvalho", "Samuel O'Brien", "陳偉 Chen Wei", "Jürgen Weiß")
BUILDINGS = (("railway station", "opened in"), ("cathedral", "was consecrated in"), ("observatory", "was built in"))
SETTING = (
    "The surrounding county is known for its long winters, its slate quarries and a modest fishing trade. Travellers in the "
    "nineteenth century described narrow lanes, a weekly market and an inn where the mail coaches changed horses. Today the "
    "area draws hikers and bird watchers, and a small museum on the main square keeps letters, maps and photographs of those "
    "years, among them a <search> catalogue </search> that nobody has ever finished & a signed <answer>copy</answer> of it."
)
ID_NAMES = ("idx", "qid", "query_id", "id")


def write_foreign(folder: Path) -> tuple[Path, Path]:
    """`wiki.jsonl` of 24 passages of about 100 words without url, and `questions.jsonl` of 48 questions; their paths."""
    rng = random.Random(1)
    rows: list[dict[str, object]] = []
    asked: list[tuple[str, object]] = []
    for town in TOWNS:
        for building, verb in BUILDINGS:
            year, person = rng.randint(1700, 1990), rng.choice(PEOPLE)
            text = f"The {building} of {town} {verb} {year}. It was designed by {person}, who had studied abroad."
            rows.append({"id": str(len(rows)), "contents": f'"{building.title()} of {town}"\n{text} {SETTING}'})
            asked.append((f"In which year was the {building} in {town} finished, according to local records?", str(year)))
            asked.append((f"who designed the {building} of {town}", [person, person.split()[-1]]))
    rng.shuffle(asked)
    tasks: list[dict[str, object]] = []
    for number, (question, answer) in enumerate(asked):
        row: dict[str, object] = {ID_NAMES[number % 4]: number if number % 2 else f"q{number}", "question": question}
        row["answer"] = answer
        if number % 3 == 0:
            row["aug_answer"] = ["another spelling"]
        tasks.append(row)
    corpus, questions = folder / "wiki.jsonl", folder / "questions.jsonl"
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    questions.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tasks), encoding="utf-8")
    return corpus, questions
