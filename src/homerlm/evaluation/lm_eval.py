"""`python -m homerlm.evaluation.lm_eval`, the former name of `python -m homerlm.lab.lm_eval`."""

from homerlm.lab.lm_eval import HomerLM, main

__all__ = ["HomerLM", "main"]

if __name__ == "__main__":
    main()
