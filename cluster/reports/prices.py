"""What tokens are worth, by the prices in the settings."""

from cluster.settings import ModelPrice, PriceSettings

_MILLION = 1_000_000


class Prices:
    """The prices of all models that have one."""

    def __init__(self, settings: PriceSettings) -> None:
        self.currency = settings.currency
        self._models: dict[str, ModelPrice] = {price.model: price for price in settings.models}

    def cost(self, model: str, prompt: int, completion: int) -> float | None:
        """The price of these tokens; None for a model without one."""
        if (price := self._models.get(model)) is None:
            return None
        return (price.input * prompt + price.output * completion) / _MILLION
