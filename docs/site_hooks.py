"""What the documentation site takes from elsewhere: help texts, the public names, and the results of experiments.

MkDocs calls the functions whose names begin with `on_`. Pages may link to files outside of docs/ as `../experiments/…`,
which is right where people read the repository; here those files become part of the site.
"""

import contextlib
import importlib
import io
import os
import pkgutil
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
RESULTS = "experiments/results"
TAKEN = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "LICENSE",
    "constraints.txt",
    "examples/*.py",
    "examples/*.ipynb",
)
TAKEN += ("experiments/*.md", "experiments/*/README.md", f"{RESULTS}/**/*.md", f"{RESULTS}/**/*.png")
ROW = re.compile(r"^\| (.*) \| `(.*)`.* \| (.*) \| `(.*)` \|$", re.MULTILINE)  # of the index of experiments


class Examples(griffe.Extension):
    """Let docstrings' "Example:" be the section that Google's style calls "Examples:", whose code is shown as code."""

    def on_instance(self, *, obj, **kwargs):
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)


def rooms() -> dict[str, list[str]]:
    """The public modules of every room, its own first."""
    import fedfisher_jax as ff

    found: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(ff.__path__, "fedfisher_jax."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            found.setdefault(module.name.split(".")[1], []).append(module.name)
    return found


def on_config(config):
    """Give every room a page under "API"."""
    pages = ["api/index.md", *({room: f"api/{room}.md"} for room in rooms())]
    config["nav"] = [{"API": pages} if "API" in entry else entry for entry in config["nav"]]
    return config


def on_files(files, config):
    """Add the pages of the rooms, and the files that pages link to."""
    files.append(File.generated(config, "api/index.md", content=face()))
    for room, modules in rooms().items():
        content = f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in modules)
        files.append(File.generated(config, f"api/{room}.md", content=content))
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(f"{RESULTS}/quick/"):
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in what pages leave open, and lead links to files beside docs/ to their copies."""
    name = page.file.src_uri
    if name.startswith(RESULTS) and not markdown.startswith("# "):
        markdown = f"# {Path(name).parent.relative_to(RESULTS)}\n\n{markdown}"
    if Path(name).parent == Path("."):
        markdown = markdown.replace("](../", "](")
    if name == "commands.md":
        markdown = markdown.replace("<!-- help -->", helps())
    return markdown.replace("<!-- gallery -->", gallery()) if name == "gallery.md" else markdown


def face() -> str:
    """The page of what `import fedfisher_jax as ff` offers: a line for each name, and in full what no room has."""
    import fedfisher_jax as ff

    public = {name: getattr(ff, name) for name in ff.__all__}
    own = [name for name, thing in public.items() if in_no_room(thing)]
    lines = [
        "# What `ff` offers",
        "",
        "With `import fedfisher_jax as ff`. Rooms have a page each.",
        "",
        "| name | |",
        "|---|---|",
    ]
    for name, thing in public.items():
        said = (thing.__doc__ or "").strip().split("\n")[0]
        where = f"fedfisher_jax.{name}" if name in own else reference(name)
        lines.append(f"| [`ff.{name}`][{where}] | {said.replace('|', chr(92) + '|')} |")
    lines += ["", "::: fedfisher_jax", f"    options: {{members: [{', '.join(own)}], show_root_heading: false}}"]
    return "\n".join(lines)


def in_no_room(thing: object) -> bool:
    """Whether the thing is defined beside the rooms, in a private module of the package itself."""
    home = getattr(thing, "__module__", None) or ""
    return home.startswith("fedfisher_jax._")


def reference(name: str) -> str:
    """Where the reference has a name of `ff`: in the room that exports it; rooms that need an extra are not loaded."""
    import fedfisher_jax as ff

    for room, modules in rooms().items():
        if room not in ff.__all__:
            continue
        if name == room:
            return modules[0]
        if name in getattr(importlib.import_module(modules[0]), "__all__", ()):
            return f"{modules[0]}.{name}"
    raise ValueError(f"name: got ff.{name}, expected one that a room exports")


def helps() -> str:
    """What `fedfisher COMMAND --help` prints for every command, 100 columns wide."""
    from fedfisher_jax import cli
    from fedfisher_jax.cli._commands import COMMANDS

    os.environ["COLUMNS"] = "100"
    sections = []
    for command in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([command, "--help"])
        lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip().splitlines()]
        if not lines or not lines[0].startswith("usage:"):
            raise ValueError(f"fedfisher {command} --help: got {lines[:1]}, expected a usage")
        sections.append("\n".join([f"## {command}", "", "```text", *lines, "```"]))
    return "\n\n".join(sections)


def gallery() -> str:
    """A section for every committed result in the index of experiments that has a figure or a table."""
    parts = []
    for title, command, minutes, where in ROW.findall((ROOT / "experiments" / "README.md").read_text()):
        folder = ROOT / RESULTS / where
        if not folder.is_dir():
            continue
        run = command if command.startswith("fedfisher ") else f"python -m experiments.{command}"
        time = minutes if minutes == "not measured" else f"{minutes} minutes"
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n`{run}`, {time}")
        for file in ("table.md", "README.md"):
            if (folder / file).exists():
                parts[-1] += f" ([{file}]({RESULTS}/{where}/{file}))"
        if (folder / "figure.png").exists():
            parts[-1] += f"\n\n![{title}]({RESULTS}/{where}/figure.png)"
    return "\n\n".join(parts)
