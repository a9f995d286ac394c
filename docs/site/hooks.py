"""Hooks of mkdocs: pages and parts of pages that are generated from the source, and links that leave `docs/`."""

import os
import re
import sys
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import concept_pages  # noqa: E402
import import_graph  # noqa: E402
import reference_pages  # noqa: E402

# Files at the top of the repository that are pages of the site.
TOP = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
# What replaces the line `<!-- generated: NAME -->` of a page.
GENERATED = {
    "architecture": import_graph.format_page,
    "commands": reference_pages.format_commands,
    "config": reference_pages.format_config,
    "deviations": concept_pages.format_deviations,
    "gpu": concept_pages.format_gpu,
    "input_rates": concept_pages.format_input_rates,
    "memory": concept_pages.format_memory,
    "noisy_student": concept_pages.format_noisy_student,
    "phi": concept_pages.format_phi,
    "python": reference_pages.format_python,
    "remat": concept_pages.format_remat,
    "scaling_figure": concept_pages.format_scaling_figure,
    "serving": concept_pages.format_serving,
    "soak": concept_pages.format_soak,
}
CONFIG = "reference/config.md"


def on_config(config):
    """List the pages of the commands in the navigation."""
    reference = next(item["Reference"] for item in config.nav if "Reference" in item)
    commands = next(item["Commands"] for item in reference if isinstance(item, dict))
    known = set(map(str, commands))
    commands += [path for path in map(command_page, reference_pages.COMMANDS) if path not in known]
    return config


def on_files(files, config):
    """Add the pages of the commands, and those from the top of the repository."""
    for name in reference_pages.COMMANDS:
        files.append(File.generated(config, command_page(name), content=reference_pages.format_command(name)))
    for name, path in TOP.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Insert what is generated, and make links lead where they lead in the repository."""
    markdown = re.sub(r"^<!-- generated: (\w+) -->$", lambda match: GENERATED[match[1]](), markdown, flags=re.M)
    source = page.file.abs_src_path or DOCS / page.file.src_uri
    here = PurePosixPath(page.file.src_uri).parent

    def rewrite(match):
        target = resolve(match[1], Path(source), files, config.repo_url)
        return f"]({target if '://' in target else os.path.relpath(target, here)}{match[2] or ''})"

    markdown = re.sub(r"\]\((?![a-z]+:)([^)\s#]+)(#[^)\s]*)?\)", rewrite, markdown)
    if str(here) == "guides":
        links = [f"[`{n}`](../{command_page(n)})" for n in reference_pages.list_used_commands(markdown)]
        markdown += f"\n---\n\nAll flags: {', '.join(links)}\n" if links else ""
    if page.file.src_uri == CONFIG:
        return markdown
    return reference_pages.link_config_keys(markdown, os.path.relpath(CONFIG, here))


def on_page_content(html, **_):
    """Keep browsers from breaking the line between the two dashes of a flag and its name."""
    return re.sub(
        r"<code>[^<]*</code>", lambda code: re.sub(r"--\w+", r'<span class="flag">\g<0></span>', code[0]), html
    )


def command_page(name):
    """Return the path of a command's page below `docs/`."""
    return f"reference/commands/{name}.md"


def resolve(target, source, files, repository):
    """Return the path below `docs/` that a link of a page leads to, or the address of a file that is not on the site.

    Args:
        target: The link, relative to its page.
        source: The file of the page.
        files: The files of the site.
        repository: The address of the repository.
    """
    path = Path(os.path.normpath(source.parent / target))
    known = TOP.get(os.path.relpath(path, ROOT), os.path.relpath(path, DOCS))
    file = files.get_file_from_path(known)
    if file is not None and file.inclusion.is_included():
        return known
    if not path.exists():
        return known  # mkdocs reports it
    return f"{repository}/{'tree' if path.is_dir() else 'blob'}/main/{os.path.relpath(path, ROOT)}"
