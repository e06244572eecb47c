"""Single pages: the FAQ quotes the code's messages, and the method's equations all have their code."""

import ast
import re

from helpers.pages import ROOT, blocks_of


def message_patterns() -> list[re.Pattern[str]]:
    """Return a pattern for each text in the package's code; what is filled in matches anything."""

    def pattern(node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = re.split(r"(?<!\{)\{\w+\}", node.value)
            return ".*".join(re.escape(part.replace("{{", "{").replace("}}", "}")) for part in parts)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(pattern, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return pattern(node.left) + pattern(node.right)
        return ".*"

    found = {
        pattern(node)
        for path in (ROOT / "pml_gca").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))
    }
    return [re.compile(text) for text in found if len(text.replace(".*", "")) > 40]


def test_messages_of_the_faq_are_those_of_the_code() -> None:
    quoted = [block for block in blocks_of(ROOT / "docs" / "faq.md") if block.language == "text"]
    assert len(quoted) > 12
    patterns = message_patterns()
    for block in quoted:
        assert any(pattern.fullmatch(block.code.strip()) for pattern in patterns), f"faq.md:{block.line}"


def test_every_equation_of_the_method_has_its_code() -> None:
    """Equations are numbered without gaps, link to the API above the formula, and are all in the map at the end."""
    text, _, table = (ROOT / "docs" / "method.md").read_text().partition("## From paper to code")
    numbers = [int(number) for number in re.findall(r"\*\*\((\d+)\)\*\*", text)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 20
    for part in re.split(r"\n(?=\*\*\(\d+\)\*\*)", text)[1:]:
        assert "](api/" in part.partition("$$")[0], part
    mapped = set()
    for row in re.findall(r"^\| [^|]* \| (\(\d+\)[^|]*) \| ([^|]*) \|$", table, flags=re.MULTILINE):
        equations, code = row
        for first, last in re.findall(r"\((\d+)\)(?: to \((\d+)\))?", equations):
            mapped |= set(range(int(first), int(last or first) + 1))
        files = re.findall(r"`([\w/]+(?:\.py|/))`", code)
        assert files, row
        assert all((ROOT / "pml_gca" / name).exists() for name in files), row
    assert mapped == set(numbers)
