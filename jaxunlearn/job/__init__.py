"""The whole job in one call: measure, unlearn, measure again, keep the evidence. The command line does the same.

>>> from jaxunlearn.testing import tiny_problem
>>> given = tiny_problem()  # stands for your model and images
>>> record = unlearn(given.model, (given.forget.x, given.forget.y), method="neggrad")
>>> record.before["forget"], record.after["forget"], record.result.stop_reason
(1.0, 0.0, 'forgotten')
"""

from jaxunlearn.job.call import unlearn

__all__ = ["unlearn"]
