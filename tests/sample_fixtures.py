"""What the tests of the sample share: a small installation, and a mix."""

from pathlib import Path

from pipeline.sample_text import Installation

MIX = (("slimpajama", 0.7), ("starcoder", 0.3))


def small_installation(folder: Path, *, num_modules: int = 30) -> Installation:
    """A standard library of a few modules and one installed package, each text easy to tell."""
    library, packages = folder / "lib", folder / "site-packages"
    library.mkdir(parents=True)
    for number in range(num_modules):
        docstring = f"Module {number} counts sheep. " * 12
        (library / f"module{number}.py").write_text(f'"""{docstring}"""\n\nnumber = {number}\n' + "x = 1\n" * 20)
    (library / "latin.py").write_bytes(b"# caf\xe9\n" + b"x = 1\n" * 40)
    information = packages / "herd-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: herd\nVersion: 1.0\n"
        "Project-URL: Source, https://github.com/shepherd/herd\n\n" + "Herd keeps sheep in order. " * 20
    )
    (packages / "herd").mkdir()
    (packages / "herd/sheep.h").write_text("/* one sheep */\nint sheep(void);\n" * 10)
    (packages / "herd/copy.h").write_text("/* one sheep */\nint sheep(void);\n" * 10)
    (packages / "herd/unlisted.h").write_text("int wolf(void);\n" * 20)
    (information / "RECORD").write_text(
        "herd-1.0.dist-info/METADATA,,\nherd/sheep.h,,\nherd/copy.h,,\n../bin/herd,,\nherd/gone.py,,\n"
    )
    return Installation(library, (packages,))
