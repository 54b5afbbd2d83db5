"""For `pytest --nbval book`: cells whose tags name hardware that is not here are skipped, their stored outputs stay."""

import pytest

from gpt2edu.show import missing_hardware


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cells that cannot run here."""
    missing = missing_hardware()
    for item in items:
        tags = missing.intersection(getattr(item, "cell", {}).get("metadata", {}).get("tags", []))
        if tags:
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(sorted(tags))}"))
