"""What README and docs name, exists: every `kvtier COMMAND --flag`, every setting `section.key`, every page linked to."""
import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def run(*command):
    return subprocess.run(command, text=True, capture_output=True).stdout


commands = set(re.findall(r"^  ([a-z]+) {2,}", run("kvtier", "--help"), re.M))
settings = {key["key"] for key in json.loads(run("kvtierd", "--check", "--json"))["keys"]}
sections = {name.split(".")[0] for name in settings}
seen = 0
for page in pages:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in link and not (page.parent / link).exists():
            print(f"{page.name}: {link} is not there")
    blocks = re.findall(r"^```.*?\n(.*?)^```", page.read_text(), re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    texts = [line.removeprefix("$ ").split("#")[0] for block in blocks for line in block.splitlines()]
    for text in texts + re.findall(r"`([^`]+)`", prose):
        for command, rest in re.findall(r"(?:^|[;&|] *)kvtier ([a-z]+)([^;&|]*)", text):
            seen += 1
            if command not in commands:
                print(f"{page.name}: no command `kvtier {command}`")
                continue
            known = run("kvtier", command, "--help")
            for flag in re.findall(r"--[a-z]+", rest):
                if flag not in known:
                    print(f"{page.name}: `kvtier {command}` has no {flag}")
        for name in re.findall(r"^([a-z]+\.[a-z_]+)(?: =.*)?$", text):
            if name.split(".")[0] in sections and name not in settings and not (ROOT / name).exists():
                print(f"{page.name}: no setting {name}")
readme = (ROOT / "README.md").read_text()
for command in sorted(commands):
    if not re.search(rf"kvtier {command}\b", readme):
        print(f"README.md: `kvtier {command}` is nowhere in it")
print("at least 30 were looked up" if seen >= 30 else f"only {seen} were looked up")
