"""Where the results of each class lie: folders class1, class2, … beside each other."""

from pathlib import Path


def class_folder(folder: Path, number: int) -> Path:
    """That of a class, by its number from 1."""
    return Path(folder) / f"class{number}"


def class_folders(folder: Path, wanted: str) -> list[Path]:
    """Those of all classes that hold a file ``wanted``, by their numbers; none where there are no classes."""
    found: list[Path] = []
    while ((place := class_folder(folder, len(found) + 1)) / wanted).is_file():
        found.append(place)
    return found
