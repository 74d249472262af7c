"""How a hand and what it holds move: rig -> pose -> grasp -> motion."""
