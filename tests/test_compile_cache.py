"""Where commands keep compiled programs."""

import os

import jax
import pytest

from fedfisher_jax.cli import _compile_cache as cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_they_lie_in_the_users_cache_folder(home):
    cache.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(cache.cache_folder())
    assert cache.cache_folder().is_relative_to(home) and cache.cache_folder().is_dir()


def test_a_folder_that_the_user_has_named_stays(home):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    cache.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_another_processor_or_compiler_has_another_folder(home, monkeypatch):
    here = cache.cache_folder()
    monkeypatch.setattr(cache.version, "__version__", "0.0.1")
    assert cache.cache_folder() != here
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(cache, "_cpu", lambda: "flags : fpu")
    assert cache.cache_folder() != here


def test_without_a_place_nothing_is_kept(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    cache.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_go_when_there_are_too_many(home, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 25)
    folder = cache.cache_folder()
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / str(number)).write_bytes(bytes(10))
        os.utime(folder / str(number), (0, number))
    cache.keep_compiled_programs()
    assert sorted(file.name for file in folder.iterdir()) == ["2", "3"]
