"""Labelled examples out of files: JSON lines, CSV, CoNLL, and SQuAD's one large JSON.

    examples = read("train.jsonl", Classified)
    examples = read("eng.train.conll", Tagged, scheme="iob1")
    examples = read("reviews.csv", Classified, labels=("bad", "good"), group="author")

The end of a file's name says which it is. A record is a dict of fields; what the fields mean is
for the kind of example to say, and fields that it does not know are left alone.
"""

import csv
import io
import json
from pathlib import Path

from minifm.errors import ConfigError, FormatError
from minifm.tasks.examples import Origin, check_labels
from minifm.tasks.spans import SCHEMES, iob2

LARGEST_CELL = 1 << 30      # characters in a cell of CSV; Python's default is 131,072


def read(path, kind, *, labels=None, group=None, scheme="iob2"):
    """The list of examples of `kind` (Classified, Tagged, Question, Summary) in a file.

    labels  the labels that may occur (default: any)
    group   the field that names what must stay on one side of a split (default: each text)
    scheme  how tags mark where an entity begins: "iob2", or "iob1" as in CoNLL-2003's own files

    Raises FormatError with the line for all that is not as it should be; ConfigError for a file
    that is not there, or whose name does not say what it is.
    """
    path = Path(path)
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    examples = []
    for origin, record in _reader(path)(_text(path), str(path)):
        if isinstance(record.get("tags"), list) and scheme == "iob1":
            record = record | {"tags": iob2(record["tags"], origin)}
        common = {"origin": origin, "group": _group(record, group, origin)}
        examples.append(kind.parse(record, **common))
    if not examples:
        raise FormatError(path, None, "no example in it")
    if labels is not None:
        check_labels(examples, labels)
    return examples


def _group(record, name, origin):
    if name is None:
        return None
    if not isinstance(record.get(name), (str, int)):
        raise origin.error(f"expected a field {name!r}, a string or an integer, to group by")
    return str(record[name])


def _reader(path):
    if path.suffix not in READERS:
        raise ConfigError(f"{path}: expected a file that ends in one of {', '.join(READERS)}")
    return READERS[path.suffix]


def _text(path):
    """The file as str, without a byte order mark, its line ends as they are."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(path, f"line {line}", f"not UTF-8: byte 0x{data[error.start]:02X}; "
                          "convert the file to UTF-8") from error


# -- each format: (text, name) -> (Origin, record) one after the other -----------------------------


def json_lines(text, name):
    """One object a line; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            origin = Origin(name, f"line {number}")
            yield origin, _object(line, origin)


def comma_separated(text, name, delimiter=","):
    """A header row and a record a row. A cell is a string; where a field is a list or a number,
    as `tags` and `answers` are, it holds JSON. Empty cells are fields that are not there."""
    rows = _rows(text, name, delimiter)
    first, header = next(rows, (1, []))
    origin = Origin(name, f"line {first}")
    if not any(header):
        raise origin.error("expected a header row with the names of the fields")
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise origin.error(f"the column {twice!r} stands twice in the header")
    for number, cells in rows:
        origin = Origin(name, f"line {number}")
        if len(cells) != len(header):
            raise origin.error(f"expected {len(header)} cells, as in the header, got {len(cells)}")
        record = {field: cell for field, cell in zip(header, cells) if cell}
        for field in CELLS_OF_JSON & record.keys():
            record[field] = _json(record[field], origin, f"column {field!r}")
        yield origin, record


CELLS_OF_JSON = {"tokens", "tags", "entities", "answers"}


def _rows(text, name, delimiter):
    """(the line that it begins in, its cells) of each row that is not blank."""
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        found, begins = [], 1
        for cells in reader:
            if cells:
                found.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise FormatError(name, f"line {begins}", f"not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return iter(found)


def conll(text, name):
    """A token in the first column and its tag in the last, white space between; a blank line
    between sentences. Lines of -DOCSTART- begin a document, which is the `document` of records."""
    tokens, tags, begins, document = [], [], 1, 0
    for number, line in enumerate([*text.split("\n"), ""], 1):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if tokens:
                yield (Origin(name, f"line {begins}"),
                       {"tokens": tokens, "tags": tags, "document": document})
            tokens, tags, begins = [], [], number + 1
            document += bool(cells)
        elif len(cells) < 2:
            raise FormatError(name, f"line {number}", "expected a token and a tag with white "
                              f"space between them, got {line!r:.60}")
        else:
            tokens.append(cells[0])
            tags.append(cells[-1])


def squad(text, name):
    """SQuAD's own nesting (Rajpurkar et al. 2016): {"data": [{"paragraphs": [{"context", "qas":
    [{"question", "answers"}]}]}]}; or a plain list of records."""
    found = _json(text, Origin(name), "the file")
    if isinstance(found, list):
        for i, record in enumerate(found):
            origin = Origin(name, f"[{i}]")
            yield origin, _as_object(record, origin)
        return
    for key, article in _items(found, "data", Origin(name)):
        for place, paragraph in _items(article, "paragraphs", key):
            for origin, question in _items(paragraph, "qas", place):
                shared = {k: paragraph[k] for k in ("context",) if k in paragraph}
                yield origin, shared | {"title": article.get("title", key.key)} | question


def _items(record, name, origin):
    """(Origin, dict) of each in the list record[name]."""
    if not isinstance(record.get(name), list):
        raise origin.error(f"expected a list {name!r}, as SQuAD has, or a list of records")
    for i, item in enumerate(record[name]):
        place = origin._replace(key=f"{origin.key}{'.' if origin.key else ''}{name}[{i}]")
        yield place, _as_object(item, place)


def _object(text, origin):
    return _as_object(_json(text, origin, "the line"), origin)


def _as_object(found, origin):
    if not isinstance(found, dict):
        raise origin.error(f"expected an object with fields, got {type(found).__name__}")
    return found


def _json(text, origin, what):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise origin.error(f"{what} is not JSON: {error}") from error


def tab_separated(text, name):
    """As comma_separated, with tabs."""
    return comma_separated(text, name, "\t")


READERS = {".jsonl": json_lines, ".ndjson": json_lines, ".csv": comma_separated,
           ".tsv": tab_separated, ".conll": conll, ".iob": conll, ".bio": conll, ".json": squad}
