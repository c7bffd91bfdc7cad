"""Why the phone is refused: provisioning's table, and what only the phone's pages can meet."""

from collections.abc import Mapping

from server.errors import RefusedError
from server.provisioning import refusals
from server.provisioning.refusals import Refusal, Then

OWN: dict[str, Refusal] = {
    "sign_in": Refusal(
        401,
        Then.ASK,
        "Du är utloggad. Logga in igen: inget av det som väntar går förlorat.",
        "Du er logget ud. Log ind igen: intet af det, der venter, går tabt.",
        "You are signed out. Sign in again: nothing that waits is lost.",
    ),
    "bad_act": Refusal(
        400,
        Then.GIVE_UP,
        "Servern förstår inte vad telefonen skickade. Ladda om sidan och gör om det.",
        "Serveren forstår ikke, hvad telefonen sendte. Genindlæs siden, og gør det igen.",
        "The server does not understand what the phone sent. Load the page again and repeat it.",
    ),
    "act_waits": Refusal(
        409,
        Then.WAIT,
        "Väntar på ett tidigare steg som inte har kommit fram.",
        "Venter på et tidligere trin, som ikke er kommet frem.",
        "Waits for an earlier step that has not arrived.",
    ),
    "not_installed": Refusal(
        409,
        Then.WAIT,
        "Enheten är inte ansluten ännu. Kvittensen skickas igen när den är det.",
        "Enheden er ikke tilsluttet endnu. Kvitteringen sendes igen, når den er det.",
        "The device is not enrolled yet. The sign-off is sent again once it is.",
    ),
    "bad_spot": Refusal(
        422,
        Then.ASK,
        "En mätpunkt har ett namn på 1 till 100 tecken och en höjd på 50 till 2000 cm.",
        "Et målepunkt har et navn på 1 til 100 tegn og en højde på 50 til 2000 cm.",
        "A spot has a name of 1 to 100 characters and a height of 50 to 2000 cm.",
    ),
    "spot_exists": Refusal(
        409,
        Then.ASK,
        "Det finns redan en mätpunkt med det namnet här. Välj den ur listan.",
        "Der er allerede et målepunkt med det navn her. Vælg det fra listen.",
        "There is a spot of that name here already. Choose it from the list.",
    ),
    "bad_staff": Refusal(
        422,
        Then.ASK,
        "Skriv namnet på den i butiken som kvitterar, högst 80 tecken.",
        "Skriv navnet på den i butikken, der kvitterer, højst 80 tegn.",
        "Write the name of who signs for the store, 80 characters at most.",
    ),
    "bad_walk": Refusal(
        422,
        Then.GIVE_UP,
        "Gångtestet går inte att läsa. Gör om det.",
        "Gangtesten kan ikke læses. Gør den om.",
        "The walk test cannot be read. Do it again.",
    ),
}
TABLE: Mapping[str, Refusal] = refusals.TABLE | OWN


def refused(code: str) -> RefusedError:
    """Return the error of a row of the table, with its sentence in English."""
    return RefusedError(code, TABLE[code].en)
