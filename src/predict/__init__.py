"""A trained network on anybody's frames: pictures, depth and boxes in, hands in metres out."""

from src.predict.hands import Hands
from src.predict.predictor import Predictor

__all__ = ["Hands", "Predictor"]
