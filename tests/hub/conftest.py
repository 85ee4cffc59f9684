from clean_environments import clean_python, installed, wheel

__all__ = ["clean_python", "installed", "wheel"]
