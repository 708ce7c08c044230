"""A conversation in the terminal: takes questions and commands line by line, and prints the answers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from granite_demo.backend import Backend
from granite_demo.chat import conversation as conversations
from granite_demo.chat import export
from granite_demo.chat.bundle import made
from granite_demo.chat.conversation import Conversation
from granite_demo.cli.terminal import Printer, say, thinking_note
from granite_demo.errors import GraniteDemoError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

HELP = """\
/new          start a new conversation
/retry        answer the last question again
/system TEXT  set the system prompt; without TEXT, remove it
/save FILE    save all conversations as JSON, which the page can import; if FILE ends in .md, this one as Markdown
/help         show this help
/exit         leave, like Ctrl-D
A line with a space before the slash is a question. Ctrl-C stops an answer and keeps its text."""


class ChatSession:
    """The conversations since the start. The last one is open."""

    def __init__(
        self,
        backend: Backend,
        runner: asyncio.Runner,
        conversation: Conversation,
        sampling: SamplingParams,
        console: Console,
        typed: bool,
    ) -> None:
        """``typed``: a person types, who can stop answers and gets a note after each one."""
        self.conversation = conversation
        self.failed = False
        """Whether anything failed."""
        self._earlier: list[Conversation] = []
        self._backend = backend
        self._runner = runner
        self._sampling = sampling
        self._console = console
        self._typed = typed
        self._commands: dict[str, Callable[[str], None]] = {
            "/new": self._new,
            "/retry": self._retry,
            "/system": self._system,
            "/save": self._save,
            "/help": lambda _: say(console, HELP),
        }
        self._tell_thinking()

    def greet(self) -> None:
        """Print the name of the model and how to continue."""
        status = self._backend.status()
        say(self._console, f"{status.title or status.model}. /help lists the commands, Ctrl-D leaves.")

    def take(self, line: str) -> bool:
        """Answer a question or execute a command. False: leave. A second Ctrl-C raises KeyboardInterrupt."""
        if not line.startswith("/"):
            self._try(self._ask, line.strip())
            return True
        name, _, rest = line.partition(" ")
        if name == "/exit":
            return False
        if name in self._commands:
            self._try(self._commands[name], rest.strip())
        else:
            self._fail(f"There is no command {name}. See /help. A line with a space before the slash is a question.")
        return True

    def _try(self, act: Callable[[str], None], text: str) -> None:
        try:
            act(text)
        except GraniteDemoError as error:
            self._fail(error.user_text)

    def _fail(self, text: str) -> None:
        self.failed = True
        self._console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def _ask(self, question: str) -> None:
        self.conversation = conversations.add(self.conversation, "user", content=question)
        self._answer()

    def _answer(self) -> None:
        request = GenerationRequest(
            conversations.to_messages(self.conversation),
            sampling=self._sampling,
            controls=self.conversation.controls,
        )
        printer = Printer(self._console)
        try:
            self._runner.run(printer.stream(self._backend, request))
        except KeyboardInterrupt:
            # Not over: this is the second Ctrl-C, and the answer has not stopped after the first.
            if not (self._typed and printer.over):
                raise
            self._keep(request, printer, printer.answer.stopped_note(printer.elapsed))
        except GraniteDemoError as error:
            self._keep(request, printer, error.user_text, failed=True)
            raise
        else:
            self._keep(request, printer, printer.answer.note(printer.elapsed))

    def _keep(self, request: GenerationRequest, printer: Printer, note: str, failed: bool = False) -> None:
        printer.end(newline=not failed or bool(printer.answer.text))
        if self._typed and not failed:
            say(self._console, note)
        answer = printer.answer
        self.conversation = conversations.add(
            self.conversation,
            "assistant",
            content=answer.text,
            thinking=answer.thinking,
            thinking_tokens=answer.thinking_tokens,
            thinking_seconds=answer.thinking_seconds(printer.elapsed),
            calls=tuple(answer.calls),
            citations=tuple(answer.citations),
            appendices=tuple(answer.appendices),
            note=note,
            kind="error" if failed else "note",
            made=made(request, answer.finish) if answer.finish else {},
        )

    def _new(self, _: str) -> None:
        if self.conversation.turns:
            self._earlier.append(self.conversation)
        self.conversation = conversations.start(system=self.conversation.system, controls=self.conversation.controls)
        say(self._console, "This is a new conversation.")

    def _retry(self, _: str) -> None:
        asked = conversations.unanswered(self.conversation)
        if asked.head is None:
            self._fail("There is no question yet.")
            return
        self.conversation = asked
        self._answer()

    def _system(self, text: str) -> None:
        self.conversation = self.conversation.model_copy(update={"system": text})
        say(self._console, "The system prompt is set." if text else "The system prompt is removed.")
        self._tell_thinking()

    def _tell_thinking(self) -> None:
        wanted = self.conversation.controls.thinking
        if note := thinking_note(self._backend.status().switches, wanted, bool(self.conversation.system.strip())):
            say(self._console, note)

    def _save(self, name: str) -> None:
        if not name:
            self._fail("Name a file, for example /save chat.json.")
            return
        kept = [conversation for conversation in (*self._earlier, self.conversation) if conversation.turns]
        if not kept:
            self._fail("There is nothing to save yet.")
            return
        if name.lower().endswith((".md", ".markdown")):
            text = export.to_markdown(self.conversation)
        else:
            found = [conversations.dump(conversation) for conversation in kept]
            text = json.dumps({"format": export.EXPORT_FORMAT, "conversations": found}, ensure_ascii=False, indent=1)
        try:
            path = Path(name).expanduser()
            path.write_text(text, encoding="utf-8")
        except (OSError, RuntimeError, ValueError) as error:  # no such home folder, a null character
            self._fail(f"{name} cannot be written: {getattr(error, 'strerror', None) or error}.")
        else:
            say(self._console, f"Saved in {path}.")
