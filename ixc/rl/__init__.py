"""Reinforcement learning: rollouts and advantages."""
