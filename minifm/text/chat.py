"""Conversations as the text that a model was taught to read: the chat template of its directory.

A template is a program in Jinja that comes with a tokenizer. It puts the turns of a conversation
between special strings such as "<|im_end|>"; what it writes here is, byte for byte, what
`apply_chat_template` of the ecosystem's library writes.

What the caller's messages say stays text: a special string becomes its token where the template
wrote all of its characters (specials.py), and nowhere else. The only strings of the caller's that
count as the template's are the usual names of roles (ROLES), of which some templates build special
strings: `'<|' + message.role + '|>'`.

To read in this order: here, from messages to text; provenance.py, whose text it is; sandbox.py, the
templates' language; specials.py, from text to tokens.
"""

import json
import traceback
from pathlib import Path

from minifm.errors import ConfigError, FormatError, UserError
from minifm.text.provenance import Traced, Untraceable, from_caller, plain
from minifm.text.specials import encode_traced
from minifm.text.tokenizer_json import TEMPLATE, read_json, read_text, template_files

CONFIG = "tokenizer_config.json"
DEFAULT, TOOL_USE = "default", "tool_use"       # of several templates
ROLES = ("system", "developer", "user", "assistant", "model", "tool", "function", "ipython")
# The special tokens that a template may name.
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")
# By which names messages give the assistant's reasoning; templates read the first, or the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The chat templates of a tokenizer: one, or several by name.

    templates  {name: (its text, the file, where in the file)}
    tokens     {"bos_token": "<s>", …}: what they may name
    """

    def __init__(self, templates, tokens=()):
        self.templates, self.tokens = dict(templates), dict(tokens)
        self._compiled = {}

    @classmethod
    def load(cls, directory):
        """From a tokenizer's directory: `chat_template.jinja` and `additional_chat_templates/`,
        and if there is neither, the `chat_template` of `tokenizer_config.json`.

        Raises FormatError for files that are not as expected, ConfigError where there is none."""
        directory = Path(directory)
        config = directory / CONFIG
        settings = read_json(config) if config.exists() else {}
        templates = _files(directory) or _settings(settings.get("chat_template"), config)
        if not templates:
            raise ConfigError(f"{directory}: no chat template is here, neither {TEMPLATE} nor a "
                              f"chat_template in {CONFIG}: a model that was not taught to converse "
                              "has none, and goes on with a text")
        return cls(templates, _tokens(settings))

    def render(self, messages, tools=None, add_generation_prompt=True, **variables):
        """The text, a str, of a conversation.

        messages    dicts with a `role` and, mostly, a `content`; what else they may say is the
                    template's business
        tools       the descriptions, as JSON, of functions that the model may call
        add_generation_prompt   end with what comes before an answer of the assistant
        variables   whatever else the template asks for; of JSON's types, as all of the above

        Raises ConfigError for messages that are none or that the template refuses, and
        FormatError for a template that fails.
        """
        return plain(self._write(messages, tools, add_generation_prompt, variables))

    def encode(self, tokenizer, messages, tools=None, add_generation_prompt=True, **variables):
        """(ids int32 [T], said bool [T]): the tokens of `render`'s text, and which of them the
        assistant said, a part at least; None where the template marks that nowhere
        ({% generation %}).

        Raises what `render` does, and ConfigError where said cannot be told, because the
        tokenizer's normaliser changes the text."""
        text = self._write(messages, tools, add_generation_prompt, variables)
        return encode_traced(tokenizer, text, marked=self._pick(tools)[1])

    # -- writing ---------------------------------------------------------------------------------

    def _write(self, messages, tools, add_generation_prompt, variables):
        """The text, Traced."""
        program, _, file, where = self._pick(tools)
        from minifm.text.sandbox import Refusal  # behind _pick, which says what it needs
        try:
            values = {"documents": None, **self.tokens, **_from_caller(variables, "variables"),
                      "messages": _conversation(messages), "tools": _tools(tools),
                      "add_generation_prompt": bool(add_generation_prompt)}
        except RecursionError:
            raise ConfigError("messages: nested too deeply, or in themselves") from None
        try:
            return Traced.of(program.environment.render(program, values))
        except UserError:
            raise
        except Refusal as refusal:
            raise ConfigError(f"messages: the chat template refuses them: {_line(refusal)} "
                              f"({file}: {_place(where, refusal)})") from refusal
        except Untraceable as unknown:
            raise FormatError(file, _place(where, unknown), f"not supported in a chat template: "
                              f"{unknown}; which of it is the caller's text could not be told") \
                from unknown
        except Exception as error:          # whatever can go wrong in somebody else's program
            raise FormatError(file, _place(where, error), f"the chat template fails: "
                              f"{_line(error)}") from error

    def _pick(self, tools):
        """(program, whether it marks what the assistant says, its file, the place in it) of the
        template for a conversation with these `tools`; it is compiled once."""
        name = TOOL_USE if tools is not None and TOOL_USE in self.templates else DEFAULT
        if name not in self.templates:
            raise ConfigError(f"chat template: none is called {DEFAULT!r}; there are "
                              f"{', '.join(self.templates)}")
        if name not in self._compiled:
            text, file, where = self.templates[name]
            self._compiled[name] = (*_compiled(text, file, where), file, where)
        return self._compiled[name]


def read_messages(file):
    """(messages, tools or None) from a .jsonl file with a message on each line, or a .json file: a
    list of messages, or an object of `messages` and `tools`. Raises FormatError, ConfigError for
    a file whose name does not say which it is."""
    if Path(file).suffix not in (".jsonl", ".json"):
        raise ConfigError(f"messages: {file}: expected a file that ends in .jsonl, a message a "
                          "line, or in .json")
    text = read_text(file).removeprefix("\ufeff")      # a byte order mark
    found, number = [], None
    try:
        if Path(file).suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    found.append(json.loads(line))
        else:
            found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(file, number and f"line {number}", f"not JSON: {error}") from error
    tools = None
    if isinstance(found, dict):
        unknown = found.keys() - {"messages", "tools"}
        if unknown:
            raise FormatError(file, min(unknown), "unknown; expected `messages` and `tools`")
        found, tools = found.get("messages"), found.get("tools")
    if not isinstance(found, list):
        raise FormatError(file, None, f"expected messages, got {found!r:.60}")
    return found, tools


# -- files ---------------------------------------------------------------------------------------


def _files(directory):
    """{name: (text, file, "")} of the templates in files of their own."""
    return {DEFAULT if file == TEMPLATE else Path(file).name.removesuffix(".jinja"):
            (text, directory / file, "") for file, text in template_files(directory).items()}


def _settings(found, file):
    """The same of those in `tokenizer_config.json`; raises FormatError."""
    if found is None:
        return {}
    if isinstance(found, str):
        return {DEFAULT: (found, file, "chat_template")}
    templates = {}
    for entry in found if isinstance(found, list) else [found]:
        pair = [entry.get(key) for key in ("name", "template")] if isinstance(entry, dict) else []
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise FormatError(file, "chat_template", "expected a template, or a list of objects "
                              f"with `name` and `template`, got {entry!r:.60}")
        templates[pair[0]] = (pair[1], file, f"chat_template {pair[0]}")
    return templates


def _tokens(settings):
    """{"eos_token": its string, …} as `tokenizer_config.json` says."""
    said = {name: settings.get(name) for name in TOKENS}
    said = {name: token.get("content") if isinstance(token, dict) else token
            for name, token in said.items()}
    return {name: token for name, token in said.items() if isinstance(token, str)}


def _compiled(text, file, where):
    """(the program, whether it marks what the assistant says); raises FormatError."""
    try:
        from jinja2.exceptions import TemplateSyntaxError

        from minifm.text.sandbox import Environment
    except ModuleNotFoundError as missing:
        raise UserError("chat templates are programs in Jinja, which is not installed: "
                        "pip install 'minifm[chat]'") from missing
    environment = Environment()
    try:
        return environment.from_string(text), environment.marks_said
    except TemplateSyntaxError as error:
        raise FormatError(file, _place(where, error), f"the chat template is no Jinja: "
                          f"{_line(error)}") from error
    except Exception as error:          # such as what Python says of twenty loops in each other
        raise FormatError(file, where, f"the chat template cannot be compiled: {_line(error)}") \
            from error


def _line(error):
    """What an exception says, on one line, of characters that do nothing to a terminal."""
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    line = " ".join(said.split())[:300]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _place(where, error):
    """Where in its file a template went wrong: `where` it stands, and the line there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == "<template>"]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    return ", ".join(([where] if where else []) + ([f"line {line}"] if line else []))


# -- what the caller gives -----------------------------------------------------------------------


def _conversation(messages):
    """The messages as a template gets them: without the keys that say nothing (None), and with
    the assistant's reasoning under each name that templates read."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ConfigError(f"messages: expected a list of at least one, got {messages!r:.60}")
    found = []
    for number, message in enumerate(messages, 1):
        where = f"message {number} of {len(messages)}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{where}: expected an object with a role, such as "
                              f'{{"role": "user", "content": "…"}}, got {message!r:.60}')
        known = {key: value for key, value in message.items() if value is not None}
        values = _from_caller(known, where)
        if message["role"] in ROLES:
            values["role"] = plain(message["role"])
        reasoning = next((values[name] for name in REASONING if name in values), None)
        if reasoning is not None:
            values = {"thinking": reasoning, **values, "reasoning_content": reasoning}
        found.append(values)
    return found


def _tools(tools):
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, dict) for tool in tools):
        raise ConfigError(f"tools: expected a list of objects that describe functions, got "
                          f"{tools!r:.60}")
    return _from_caller(tools, "tools")


def _from_caller(value, where):
    """A value of JSON's types, rebuilt with all of its strings marked as the caller's."""
    if isinstance(value, str):
        return from_caller(plain(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, tuple):
        return tuple([_from_caller(item, where) for item in value])
    if isinstance(value, list):
        return [_from_caller(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_from_caller(key, where): _from_caller(item, where)
                for key, item in value.items()}
    raise ConfigError(f"{where}: expected what JSON can say, got a {type(value).__name__}: "
                      f"{value!r:.60}")
