"""A stand-in for Colab's own package, for tests: put `tests/fake_colab` on the path and set
COLAB_RELEASE_TAG.

Behaves as the sources at https://github.com/googlecolab/colabtools do, with folders and secrets
from the environment:

* FAKE_COLAB_DRIVE: a folder that plays the person's Drive and outlives the machine.
* FAKE_COLAB_NO_DRIVE: why Drive cannot be mounted, one of the keys of `drive.FAILURES`; "refused"
    without a Drive.
* FAKE_COLAB_ASKED: a file that gets a line each time the person is asked for Drive.
* FAKE_COLAB_SECRETS: JSON, `{"NAME": "value"}`. The value null means that the notebook may not read
    the secret.
* FAKE_COLAB_NO_ANSWER: if set, secrets time out, as they do outside Colab's own page.
* FAKE_COLAB_NO_PAGE: if set, the browser answers nothing but an error, as in VS Code.
"""

from google.colab import drive, errors, files, userdata

__all__ = ["drive", "errors", "files", "userdata"]
