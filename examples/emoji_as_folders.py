"""Draw emoji of twelve designs as a folder of class folders: one class per emoji, one image per design.

Get the drawings, and run this script on them:

    python examples/emoji_as_folders.py --help  # shows the command that gets the packages
    python examples/emoji_as_folders.py PACKAGES FOLDER

All designs have open licenses; the license of each is written beside the images.
"""

import argparse
import json
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

DESIGNS = (
    *("noto", "noto-v1", "twemoji", "openmoji", "emojione", "emojione-v1", "emojione-monotone"),
    *("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "fxemoji", "streamline-emojis"),
)
PACKAGES = {design: f"@iconify-json/{design}" for design in DESIGNS}
MIN_DESIGNS = 6
"""An emoji is a class if at least so many designs draw it."""

NEAR_DUPLICATES = re.compile(
    r"skin-tone|facing-right|-thirty$|oclock|\b(flags?|clock|arrows?|letters?|input|button|family|keycap)\b"
    r"|\b(wo)?m[ae]n\b"  # beside the same emoji without a gender
)
"""Names of emoji that differ from others by colour, direction, gender or lettering alone."""


@dataclass(frozen=True)
class Design:
    """The drawings of one designer.

    Attributes:
        license: its title and where it stands, a line of text each.
        drawings: SVG documents by the name of the emoji.
    """

    license: str
    drawings: Mapping[str, str]


def read_design(folder: Path, design: str) -> Design:
    """Read one package.

    Args:
        folder: holds the package in `node_modules/@iconify-json/<design>`, `@iconify-json/<design>` or
            `<design>`.
        design: one of `DESIGNS`.

    Raises:
        ValueError: the package is missing, or its files are not those of an icon set.
    """
    package = PACKAGES[design]
    places = [folder / "node_modules" / package, folder / package, folder / design]
    place = next((place for place in places if (place / "icons.json").is_file()), None)
    if place is None:
        raise ValueError(f"{folder} has no package {package}; get it: npm install --prefix {folder} {package}")
    try:
        icons = json.loads((place / "icons.json").read_text(encoding="utf-8"))
        info = json.loads((place / "info.json").read_text(encoding="utf-8"))
        by = f"{info['name']} by {info['author']['name']}, {info['author'].get('url', 'no address')}"
        license = f"{by}\n{info['license']['title']}, {info['license'].get('url', 'no address')}\n"
        drawings = {name: as_svg(icon, icons) for name, icon in icons["icons"].items() if not icon.get("hidden")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{place} is no whole icon set ({type(error).__name__}: {error}); "
            f"install it again: npm install --prefix {folder} --force {package}"
        ) from None
    return Design(license, drawings)


def as_svg(icon: Mapping[str, Any], icon_set: Mapping[str, Any]) -> str:
    """Return an icon as an SVG document; sizes that it lacks are those of its set, or 16."""
    left, top = (icon.get(name, icon_set.get(name, 0)) for name in ("left", "top"))
    width, height = (icon.get(name, icon_set.get(name, 16)) for name in ("width", "height"))
    box = f"{left:g} {top:g} {width:g} {height:g}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" color="black">{icon["body"]}</svg>'


def choose_classes(designs: Mapping[str, Design]) -> dict[str, list[str]]:
    """Return the designs of each emoji that becomes a class, sorted by name; see `MIN_DESIGNS`, `NEAR_DUPLICATES`."""
    drawn_by = defaultdict(list)
    for design, content in designs.items():
        for name in content.drawings:
            drawn_by[name].append(design)
    return {
        name: drawn_by[name]
        for name in sorted(drawn_by)
        if len(drawn_by[name]) >= MIN_DESIGNS and not NEAR_DUPLICATES.search(name)
    }


def draw(svg: str, image_size: int) -> bytes:
    """Return an SVG document as a PNG file: on white, centred in a square."""
    png: bytes = import_module("resvg_py").svg_to_bytes(
        svg_string=svg.replace("<svg ", f'<svg width="{image_size}" height="{image_size}" ', 1),
        background="white",
        skip_system_fonts=True,
    )
    return bytes(png)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    one_per_line = " \\\n    ".join(PACKAGES.values())
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Draw emoji of twelve designs as a folder of class folders: one class per emoji,\n"
        "one image per design. Train on it with --data FOLDER.",
        epilog=f"Get the drawings:\n\nnpm install --prefix PACKAGES \\\n    {one_per_line}",
    )
    parser.add_argument("packages", type=Path, help="folder that the packages were installed in")
    parser.add_argument("folder", type=Path, help="folder to make: FOLDER/<emoji>/<design>.png")
    parser.add_argument("--image-size", type=int, default=96, help="side, in pixels (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 16 <= args.image_size <= 1024:
        parser.error(f"--image-size must lie in [16, 1024], got {args.image_size}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        sys.exit(f"{args.folder} is there already and not empty; name another folder, or delete it")
    try:
        import_module("resvg_py")
        designs = {design: read_design(args.packages, design) for design in DESIGNS}
    except ImportError:
        sys.exit("resvg_py draws the SVG files, and is missing; install it: pip install resvg_py")
    except ValueError as error:
        sys.exit(str(error))
    classes = choose_classes(designs)
    undrawn: Counter[str] = Counter()
    partial = args.folder.with_name(f"{args.folder.name}.partial")  # a stopped run leaves no half folder behind
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for design, content in designs.items():
        (partial / f"LICENSE-{design}.txt").write_text(content.license, encoding="utf-8")
    for name, drawn_by in tqdm(classes.items(), desc="drawing emoji", unit="emoji"):
        (partial / name).mkdir()
        for design in drawn_by:
            try:
                image = draw(designs[design].drawings[name], args.image_size)
            except ValueError:
                undrawn[design] += 1
            else:
                (partial / name / f"{design}.png").write_bytes(image)
    partial.replace(args.folder)
    print(f"{sum(map(len, classes.values())) - undrawn.total()} images of {len(classes)} emoji in {args.folder}")
    if undrawn:
        print(f"Not drawn, as their SVG is broken: {', '.join(f'{n} of {d}' for d, n in undrawn.items())}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nemoji_as_folders.py: stopped; run the same command again")
