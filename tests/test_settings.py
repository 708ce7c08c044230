"""Flags over environment over defaults, errors that name their source, and what comes from the table of options."""

import re
from pathlib import Path
from typing import Any

import pytest

from granite_demo import settings as settings_module
from granite_demo.errors import ConfigurationError
from granite_demo.settings import OPTIONS, Settings, options_page
from granite_demo.types.load_options import LoadOptions

NAMES = [option.name for option in OPTIONS]
COMMANDS = {"serve", "complete", "chat", "score", "compare", "doctor", "bench", "replay", "models", "fits", "pull"}
PAGE = Path(__file__).parent.parent / "docs/options.md"
TABLE = re.compile(
    r"<!-- options: generated from granite_demo/settings.py -->\n\n(.*)\n\n<!-- end of options -->", re.DOTALL
)


def test_nothing_given_means_the_defaults() -> None:
    assert Settings.resolve({}, {}) == Settings()
    assert Settings.resolve(dict.fromkeys(NAMES), {"GRANITE_DEMO_PORT": "", "PORT": "9"}) == Settings()


def test_flags_win_over_the_environment_and_that_over_defaults() -> None:
    environ = {"GRANITE_DEMO_PORT": "81", "GRANITE_DEMO_DEVICE": "cuda", "GRANITE_DEMO_LOG_LEVEL": "debug"}
    settings = Settings.resolve({"port": 80, "device": None, "tokens": 5}, environ)
    assert (settings.port, settings.device, settings.log_level, settings.dtype) == (80, "cuda", "debug", "auto")


def test_a_flag_of_zero_is_given() -> None:
    settings = Settings.resolve({"port": 0, "threads": 0}, {"GRANITE_DEMO_PORT": "81", "GRANITE_DEMO_THREADS": "4"})
    assert (settings.port, settings.threads) == (0, 0)


def test_variables_are_cast_to_their_fields_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = Settings.resolve({}, {"GRANITE_DEMO_THREADS": " 4", "GRANITE_DEMO_CACHE": "~/models"})
    assert settings.threads == 4
    assert settings.cache_dir == Path("/home/someone/models")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("port", "http", "must be a whole number, not 'http'"),
        ("port", "65536", "must be between 0 and 65535, not 65536"),
        ("port", "-1", "must be between 0 and 65535, not -1"),
        ("threads", "1.5", "must be a whole number, not '1.5'"),
        ("device", "tpu", "must be one of auto, cuda, mps, cpu, not 'tpu'"),
        ("dtype", "int8", "must be one of auto, bfloat16, float16, float32, not 'int8'"),
        ("quantization", "int4", "must be one of auto, none, int8, nf4, fp4, not 'int4'"),
        (
            "attention",
            "xformers",
            "must be one of auto, eager, sdpa, flash_attention_2, flash_attention_3, flash_attention_4, not 'xformers'",
        ),
        ("context", "10000001", "must be between 0 and 10000000, not 10000001"),
        ("context", "many", "must be a whole number, not 'many'"),
        ("log_level", "loud", "must be one of debug, info, warning, error, not 'loud'"),
    ],
)
def test_mistakes_name_the_flag_or_the_variable(name: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as as_flag:
        Settings.resolve({name: value}, {})
    variable = f"GRANITE_DEMO_{name.upper()}"
    with pytest.raises(ConfigurationError) as as_variable:
        Settings.resolve({}, {variable: value})
    assert str(as_flag.value) == f"--{name.replace('_', '-')} {problem}."
    assert str(as_variable.value) == f"{variable} {problem}."


@pytest.mark.parametrize("value", [Path("~nobody-of-this-name/models"), "~nobody-of-this-name/models"])
def test_an_unknown_home_is_a_mistake_too(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="^--cache-dir "):
        Settings.resolve({"cache_dir": value}, {})


def test_variables_are_named_after_fields_and_the_cache_is_short() -> None:
    variables = {option.name: option.variable for option in OPTIONS}
    assert variables.pop("cache_dir") == "GRANITE_DEMO_CACHE"
    assert variables == {name: f"GRANITE_DEMO_{name.upper()}" for name in variables}


def test_the_documentation_has_the_table() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found, "docs/options.md has no markers"
    assert found[1] == options_page(), (
        "docs/options.md differs from granite_demo/settings.py. Copy what this prints: "
        "python -c 'from granite_demo.settings import options_page; print(options_page())'"
    )


def test_an_option_with_the_name_of_a_secret_is_a_secret() -> None:
    words = {"key", "token", "login", "password", "secret"}
    named = {option.name for option in OPTIONS if words & set(option.name.split("_"))}
    assert {option.name for option in OPTIONS if option.secret} == named
    assert named == {"admin_token", "api_key", "login", "backend_key", "beside_key"}


def test_no_log_shows_a_secret() -> None:
    given = {option.name: f"{option.name}:hush" for option in OPTIONS if option.secret}
    others = {f"{name}:hush" for name in given if name != "login"}
    assert set(Settings(**given).secrets) == {"hush", *others}  # type: ignore[arg-type]
    assert set(Settings(login="ann:one,bob:two:three").secrets) == {"one", "two:three"}
    assert Settings().secrets == ()


def test_each_option_belongs_to_known_commands_and_has_a_help_text() -> None:
    for option in OPTIONS:
        assert set(option.commands) <= COMMANDS
        assert option.help.endswith(".")


def test_the_flags_of_settings_give_the_same_settings() -> None:
    settings = Settings(
        model="a model",
        host="::1",
        port=1,
        device="cpu",
        dtype="float16",
        quantization="int8",
        attention="eager",
        keep_quantized="yes",
        engine="static",
        compile="yes",
        context=131072,
        kv_cache="q8_0",
        revision="v1",
        idle_minutes=5,
        threads=2,
        admin_token="sesame",
        api_key="key",
        login="ann:secret",
        share="yes",
        visitor_answers=3,
        visitor_waiting=5,
        visitor_tokens=100_000,
        answer_seconds=3600,
        allowed_hosts="example.org",
        allowed_origins="https://example.org",
        trusted_proxies="10.0.0.1",
        backend="http://localhost:8000",
        backend_key="open",
        backend_model="big",
        beside="http://localhost:9000",
        beside_key="shut",
        log_level="error",
        cache_dir=Path("/a b/c"),
    )
    values = {name: getattr(settings, name) for name in NAMES}
    assert Settings.resolve(values, {}) == settings
    assert Settings.resolve({}, {option.variable: str(values[option.name]) for option in OPTIONS}) == settings
    assert all(values[name] != getattr(Settings(), name) for name in NAMES), "each field is tried"
    flags = settings.as_flags("serve")
    known = dict(zip(flags[::2], flags[1::2], strict=True))
    assert known["--log-level"] == "error"
    assert not {"key", "sesame", "ann:secret", "open", "shut"} & set(known.values())
    secrets = {option.name: values[option.name] for option in OPTIONS if option.secret}
    again = {name.removeprefix("--").replace("-", "_"): value for name, value in known.items()}
    assert Settings.resolve({**again, **secrets}, {}) == settings
    assert "--log-level" not in settings.as_flags("bench")


@pytest.mark.parametrize(
    ("flags", "environ", "public"),
    [
        ({}, {}, False),
        ({"host": "localhost"}, {}, False),
        ({"host": "::1"}, {}, False),
        ({"host": "0.0.0.0"}, {}, True),
        ({}, {"GRANITE_DEMO_HOST": "192.168.0.5"}, True),
        ({}, {"SPACE_ID": "somebody/granite"}, True),
    ],
)
def test_a_page_that_strangers_can_reach_is_public(
    flags: dict[str, str], environ: dict[str, str], public: bool
) -> None:
    assert Settings.resolve(flags, environ).public is public


def test_a_space_keeps_what_it_fetches_in_its_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_space = {"SPACE_ID": "somebody/granite"}
    monkeypatch.setattr(settings_module, "STORAGE", tmp_path)
    settings = Settings.resolve({}, on_a_space)
    assert (settings.cache_dir, settings.host) == (tmp_path / "granite-demo", "0.0.0.0")
    chosen = Settings.resolve({"host": "127.0.0.1"}, {**on_a_space, "GRANITE_DEMO_CACHE": "/elsewhere"})
    assert (chosen.cache_dir, chosen.host) == (Path("/elsewhere"), "127.0.0.1")
    assert Settings.resolve({}, {}) == Settings()
    monkeypatch.setattr(settings_module, "STORAGE", tmp_path / "not mounted")
    assert Settings.resolve({}, on_a_space).cache_dir == Settings().cache_dir


def test_what_to_load_is_a_part_of_the_settings() -> None:
    assert Settings().load_options() == LoadOptions("auto")
    given = {"model": "m", "revision": "v1", "device": "cpu", "dtype": "float16", "context": 4096}
    given |= {"quantization": "int8", "attention": "eager"}
    assert Settings.resolve(given, {}).load_options() == LoadOptions(**given)  # type: ignore[arg-type]


TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}


def test_torchrun_sets_the_rank_of_the_process() -> None:
    alone, one_of_four = Settings.resolve({}, {"WORLD_SIZE": "1"}), Settings.resolve({}, TORCHRUN)
    assert (alone.processes, alone.rank, alone.local_rank) == (1, 0, 0)
    assert (one_of_four.processes, one_of_four.rank, one_of_four.local_rank) == (4, 3, 1)


@pytest.mark.parametrize("environ", [{"WORLD_SIZE": "4"}, {**TORCHRUN, "RANK": "x"}, {**TORCHRUN, "WORLD_SIZE": "x"}])
def test_a_part_of_torchruns_variables_is_a_mistake(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="Use torchrun"):
        Settings.resolve({}, environ)


def test_a_shared_model_cannot_be_idle() -> None:
    with pytest.raises(ConfigurationError, match="Remove --idle-minutes"):
        Settings.resolve({"idle_minutes": 5}, TORCHRUN)
    assert Settings.resolve({"idle_minutes": 0}, TORCHRUN).idle_minutes == 0
