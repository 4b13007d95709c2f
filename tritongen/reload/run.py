"""One reload from the state of the disk and the server to the report: the Python API of `tritongen reload`.

What the disk holds at each moment, so that a server that restarts brings up a version that it served or that
was checked (`old` serves, `new` is what the build wrote; both are whole states of the model's folder):

    repository   beside it              the server
    new          old                    old              after `tritongen build`
    old          new                    old              1. the old state goes back into the repository
    old          new                    old + shadow     2. the new one is loaded under another name, checked
    new          old                    old              3. the new state goes into the repository
    new          old                    new              4. `load`: the old version serves until then

A failure in 2 ends there; one in 4 undoes 3. Where the first line's new state is damaged or gone, there
is 1 only.
A kill leaves one of these lines, and the next reload goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tritongen.autotune.closeness import EQUAL
from tritongen.errors import InputError, TritongenError
from tritongen.reload.answers import compare_answers, known_answers
from tritongen.reload.disk import Disk, check_model, state_of
from tritongen.reload.settings import changed_fields, lost_to_clients
from tritongen.reload.shadow import Shadow, State, remove_shadow
from tritongen.repository.kept import (
    Kept,
    confirm,
    damage,
    put_in_service,
    recover_kept,
    reject,
    shadow_name,
)
from tritongen.repository.swap import locked, recover
from tritongen.runs.events import Event, EventSink, Status, discard
from tritongen.runs.records import OutputError
from tritongen.runs.reload import ReloadOutcome, ReloadReport
from tritongen.serving.control import LOAD_TIMEOUT_S, RefusedError, ServerControl

_STAGE = "reload"
_DRAIN_S, _POLL_S = 30.0, 0.05


class ReloadError(TritongenError):
    """The new version was not taken over; the old one serves on."""


def reload_model(
    control: ServerControl,
    repository: Path,
    name: str,
    *,
    to: int | None = None,
    timeout_s: float = LOAD_TIMEOUT_S,
    events: EventSink = discard,
) -> ReloadReport:
    """Let a running server take over what the repository holds of model `name`, or its kept version `to`.

    InputError for a model or version that is not there; RefusedError if the server does not load models while
    it runs; ServerError if it cannot be reached or dies (run it again: nothing is lost); RepositoryError if
    the repository does not hold what was built; ReloadError if the server cannot load the new version or that
    answers differently: then the old one serves on, and is what the repository holds, as far as it is kept.
    """
    check_model(repository, name)
    about = control.server_metadata()
    control.check_explicit()
    with locked(repository):
        for restored in (*recover(repository), *recover_kept(repository)):
            events(Event(_STAGE, "note", "put back after an interrupted write", subject=restored))
        if remove_shadow(repository, name):
            control.unload(shadow_name(name), timeout_s)
            events(Event(_STAGE, "note", "what an interrupted reload had left is removed", subject=name))
        disk, server = Disk(repository, name), f"{about.name} {about.version}"
        reload = _Reload(control, disk, timeout_s, events, server)
        return reload.run(to)


@dataclass
class _Reload:
    control: ServerControl
    disk: Disk
    timeout_s: float
    events: EventSink
    server: str
    displaced: Kept | None = None
    """What lay in the repository and gave way to what is served, as it is kept now."""
    spoiled: bool = False
    """Whether the server says that it is not ready since a load failed."""

    def run(self, to: int | None) -> ReloadReport:
        served, (live, damaged) = self._served(), self.disk.found()
        if damaged is not None and (to is None or (live is not None and to == live.version)):
            raise self.disk.put_back(served, damaged)
        new, aside = self.disk.choose(served, live, to)
        if aside is not None:
            self.disk.check_whole(new)
        elif served == new.version and self._answers_already(new):
            return self._report(new, served, self._compare(new, self.disk.name), "unchanged")
        self._say("started", f"version {new.version} is loaded {_beside(served)}")
        new, aside, old = self._protect(served, live, new, aside)
        try:
            answers, load_s = self._look_at(new, old)
        except _OtherRepositoryError:
            if self.displaced is not None:
                put_in_service(self.displaced, self.disk.repository)
            raise
        except (RefusedError, ReloadError) as error:
            self._tell_unserved(new)
            raise self._refused(served, new, aside, error) from None
        self._tell_unserved(new)
        lost = self._lost(served, new)
        before, switch_s = self._switch(served, new, aside)
        # Of a version with another configuration only, the older configuration is not worth keeping.
        before = before if before is not None and before.version != new.version else None
        if before is not None and damaged is not None:
            reject(before, damaged.message)
            before = None
        confirm(self.disk.repository, self.disk.name, before, served=served)
        report = self._report(self.disk.live(), served, answers, "switched")
        return report.model_copy(
            update={
                "lost": lost,
                "load_s": load_s,
                "switch_s": switch_s,
                "kept": before.version if before else None,
            }
        )

    def _served(self) -> int | None:
        """The version that clients without one get; None if the model is not loaded."""
        entries = [entry for entry in self.control.index() if entry.name == self.disk.name]
        ready = [entry.version for entry in entries if entry.state == "READY"]
        if not entries and self.control.is_ready(self.disk.name):
            # Triton lists the folders of its repository; it serves on what has none any more.
            ready = list(self.control.model_metadata(self.disk.name).versions)
        return max((int(version) for version in ready if version.isdecimal()), default=None)

    def _answers_already(self, live: State) -> bool:
        """Whether the server runs this very state."""
        states = self.disk.kept()
        rebuilt = any(each.version == live.version and each.rejected is None for each in states)
        in_force = self.control.model_config(self.disk.name)
        if rebuilt or changed_fields(live.config, in_force):
            return False
        return all(each.passed for each in self._compare(live, self.disk.name))

    def _protect(
        self, served: int | None, live: State | None, new: State, aside: Kept | None
    ) -> tuple[State, Kept | None, State | None]:
        """The served state in the repository, and the new one beside it, as far as the former is kept."""
        states = self.disk.kept()
        old = next((k for k in states if k.version == served and k.rejected is None and k != aside), None)
        if old is not None and (live is None or live.version != served or aside is None):
            self.displaced = put_in_service(old, self.disk.repository, sets_aside=aside is None)
            if aside is None and self.displaced is not None:
                new, aside = state_of(self.displaced), self.displaced
        live, _ = self.disk.found()
        held = live.version if live is not None else None
        if served is not None and served not in (held, new.version if aside is not None else None):
            self._say(
                "warning",
                f"version {served}, which is served, is not kept on the disk: if version {new.version} "
                "fails, the server goes on, but the repository has nothing to go back to",
            )
        return new, aside, live if held == served and aside is not None else None

    def _tell_unserved(self, new: State) -> None:
        """Where the version is that lay in the repository, not served, when another was asked for."""
        spare = self.displaced
        if spare and spare.version > new.version and damage(spare.folder, spare.manifest) is None:
            back = f"`tritongen reload {self.disk.name} --to {spare.version}`"
            self._say("note", f"version {spare.version} was built but not served; it is kept: {back}")

    def _look_at(self, new: State, old: State | None) -> tuple[tuple[OutputError, ...], float]:
        """Load the new version under another name and compare its answers; ReloadError if they differ."""
        shadow = Shadow(self.disk.repository, self.control, new, old, self.timeout_s)
        started = time.perf_counter()
        try:
            with shadow.loaded():
                load_s = time.perf_counter() - started
                self._say(
                    "progress",
                    f"version {new.version} is loaded, its answers are compared with its own build's",
                )
                answers = self._compare(new, shadow.name)
                _check_answers(new, answers)
        except RefusedError:
            self.spoiled = shadow.spoiled
            if not shadow.unseen:
                raise
            raise _OtherRepositoryError(
                f"the server at {self.control.url} serves another repository",
                found="a model that was written into this one is not there",
                expected=f"a server of {self.disk.repository.resolve()}",
                fix="name the server's with --repository, or the server of this one with --url",
            ) from None
        self._say("finished", f"version {new.version}: {_answers_text(answers)}")
        return answers, load_s

    def _compare(self, state: State, name: str) -> tuple[OutputError, ...]:
        known = known_answers(state)
        if known is None:
            return ()
        return compare_answers(self.control, name, state, known, self.timeout_s)

    def _lost(self, served: int | None, new: State) -> tuple[str, ...]:
        """What clients of the served version lose with the new one, told before they get it."""
        if served is None:
            return ()
        lost = lost_to_clients(new.config, self.control.model_config(self.disk.name))
        for one in lost:
            self._say("warning", f"version {new.version} breaks clients of version {served}: {one}")
        return lost

    def _switch(self, served: int | None, new: State, aside: Kept | None) -> tuple[Kept | None, float]:
        """Let clients have the new version; the state that was served, as it is kept now."""
        before = put_in_service(aside, self.disk.repository) if aside is not None else None
        started = time.perf_counter()
        try:
            self.control.load(self.disk.name, timeout_s=self.timeout_s)
            switch_s = time.perf_counter() - started
            self._check_switched(self.disk.live())
        except (RefusedError, ReloadError) as error:
            if before is not None:
                before = put_in_service(before, self.disk.repository)
                self.control.load(self.disk.name, timeout_s=self.timeout_s)
            raise self._refused(served, new, before, error) from None
        self._wait_drained(new.version)
        self._say("finished", f"clients get version {new.version}")
        return before, switch_s

    def _check_switched(self, live: State) -> None:
        served = self._served()
        if served != live.version:
            raise ReloadError(
                f"clients do not get version {live.version} of '{self.disk.name}' after it was loaded",
                found=f"version {served}",
                fix="look at version_policy in its config.pbtxt",
            )
        _check_answers(live, self._compare(live, self.disk.name))
        differing = changed_fields(live.config, self.control.model_config(self.disk.name))
        if differing:
            self._say("warning", f"the server runs it with other settings than its file's: {differing}")

    def _wait_drained(self, version: int) -> None:
        """Wait for the requests that older versions are still at work on, within reason."""
        deadline = time.monotonic() + min(_DRAIN_S, self.timeout_s)
        while any(
            entry.name == self.disk.name and entry.state == "UNLOADING" and entry.version != str(version)
            for entry in self.control.index()
        ):
            if time.monotonic() > deadline:
                self._say(
                    "note", "an older version is still at work; the server lets go of it in its own time"
                )
                return
            time.sleep(_POLL_S)

    def _refused(
        self, served: int | None, new: State, aside: Kept | None, error: TritongenError
    ) -> ReloadError:
        """The error that says what serves now and what the disk holds."""
        cause = f"{error.message}: {error.found}" if error.found else error.message
        if aside is not None:
            reject(aside, cause)
            live, _ = self.disk.found()
            held = "nothing of it" if live is None else f"version {live.version} again"
            disk = f"the repository holds {held}; the refused one is in {aside.slot}"
        elif served is None:
            disk = (
                "it stays in the repository, and a server that starts tries to load it: mend it or remove it"
            )
        else:
            disk = (
                f"the repository still holds version {new.version}, and a restart would bring it up: mend it"
            )
        ready = "; the server says that it is not ready, until it is restarted" if self.spoiled else ""
        goes_on = "and no other is served" if served is None else f"version {served} serves on"
        return ReloadError(
            f"version {new.version} of '{self.disk.name}' was not taken over; {goes_on}",
            found=error.found or error.message if isinstance(error, RefusedError) else cause,
            fix=f"{disk}{ready}",
        )

    def _report(
        self, state: State, before: int | None, answers: tuple[OutputError, ...], outcome: ReloadOutcome
    ) -> ReloadReport:
        return ReloadReport(
            model=self.disk.name,
            url=self.control.url,
            server=self.server,
            outcome=outcome,
            version=state.version,
            before=before,
            answers=answers,
        )

    def _say(self, status: Status, message: str) -> None:
        self.events(Event(_STAGE, status, message, subject=self.disk.name))


class _OtherRepositoryError(InputError):
    """The server does not see what is written into this repository."""


def _check_answers(state: State, answers: tuple[OutputError, ...]) -> None:
    failed = [each for each in answers if not each.passed]
    if failed:
        raise ReloadError(
            f"version {state.version} answers differently from when it was built",
            found="; ".join(f"{each.output}: {_answer(each)}" for each in failed),
        )


def _beside(version: int | None) -> str:
    return "to be checked; none is served" if version is None else f"beside version {version}"


def _answers_text(answers: tuple[OutputError, ...]) -> str:
    if not answers:
        return "loaded; the build kept no answers to compare"
    return f"against its own build: {', '.join(f'{each.output}: {_answer(each)}' for each in answers)}"


def _answer(error: OutputError) -> str:
    if error.measure == EQUAL:
        return f"{100 * error.value:.4g} % equal (limit {100 * error.limit:.4g} %)"
    return f"relative L2 {error.value:.2g} (limit {error.limit:.2g})"
