"""placeholder"""


def run_kills(*a):
    return []


def summary(k):
    return ""


def write(k, f):
    pass
