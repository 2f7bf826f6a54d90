"""A certificate for pictures of any kind, by any model: are they copies of its training pictures?

from tasks.certify import certify

if __name__ == "__main__":  # pictures are read in processes of their own, which import this file
    result = certify(train="my_training_pictures", samples="generated")
    print(result.verdict, result.sentence)
"""

from tasks.certify.certify import Result, certify

__all__ = ["Result", "certify"]
