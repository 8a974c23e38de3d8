from typing import Any

class Snapshot:
    def __new__(
        cls,
        exchange_api: Any,
        is_neg: Any,
        types: tuple[type, ...],
        params: list[Any],
        state: dict[Any, Any],
        /,
    ) -> Snapshot: ...
    def check(self, params: list[Any], state: dict[Any, Any], /) -> bytes | None: ...
