"""Why a device or a technician is refused: one table, read by the answer, the page and the device.

Each code is stable; its sentence says what to do, in the three languages that people on site read.
`then` is what the device does about it by itself. Nothing in provisioning refuses with a code that
is not here (`tests/unit/test_provisioning_refusals.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from server.errors import RefusedError

Language = Literal["sv", "da", "en"]


class Then(StrEnum):
    """What the device does after a refusal."""

    GIVE_UP = "give up"  # asking again the same way can never help
    WAIT = "wait"  # and ask again, after `retry_after` seconds
    ASK = "ask a person"  # nothing changes until somebody has done something; then ask again


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row of the table: the HTTP status, what the device does, the sentences."""

    status: int
    then: Then
    sv: str
    da: str
    en: str

    def sentence(self, language: Language) -> str:
        """Return the sentence in a language."""
        match language:
            case "sv":
                return self.sv
            case "da":
                return self.da
            case "en":
                return self.en


TABLE: dict[str, Refusal] = {
    "malformed": Refusal(
        400,
        Then.GIVE_UP,
        "Servern förstår inte frågan. Uppdatera enhetens program.",
        "Serveren forstår ikke forespørgslen. Opdater enhedens program.",
        "The server does not understand the request. Update the device's software.",
    ),
    "too_large": Refusal(
        413,
        Then.GIVE_UP,
        "Frågan är större än servern tar emot. Uppdatera enhetens program.",
        "Forespørgslen er større, end serveren tager imod. Opdater enhedens program.",
        "The request is larger than the server takes. Update the device's software.",
    ),
    "bad_request_for_certificate": Refusal(
        400,
        Then.GIVE_UP,
        "Enhetens certifikatbegäran går inte att använda. Installera om enheten.",
        "Enhedens certifikatanmodning kan ikke bruges. Geninstaller enheden.",
        "The device's certificate request cannot be used. Install the device anew.",
    ),
    "key_in_use": Refusal(
        409,
        Then.GIVE_UP,
        "Nyckeln hör redan till en annan enhet. Kortet är en kopia: installera om enheten.",
        "Nøglen tilhører allerede en anden enhed. Kortet er en kopi: geninstaller enheden.",
        "This key belongs to another device already. The memory card is a copy: install it anew.",
    ),
    "key_revoked": Refusal(
        409,
        Then.GIVE_UP,
        "Enhetens nyckel är spärrad. Installera om enheten, så att den gör en ny.",
        "Enhedens nøgle er spærret. Geninstaller enheden, så den laver en ny.",
        "The device's key was revoked. Install it anew, so that it makes another.",
    ),
    "certificate_withdrawn": Refusal(
        409,
        Then.WAIT,
        "Certifikatet drogs tillbaka under tiden. Enheten frågar igen av sig själv.",
        "Certifikatet blev trukket tilbage imens. Enheden spørger igen af sig selv.",
        "The certificate was withdrawn meanwhile. The device asks again by itself.",
    ),
    "unknown_serial": Refusal(
        403,
        Then.ASK,
        "Serienumret är inte anmält. Kontrollera det, eller be driften läsa in leveranslistan.",
        "Serienummeret er ikke tilmeldt. Kontrollér det, eller bed driften indlæse listen.",
        "This serial is not announced. Check it, or ask operations to import the delivery's list.",
    ),
    "bad_secret": Refusal(
        403,
        Then.ASK,
        "Koden på etiketten stämmer inte med serienumret. Läs av etiketten igen.",
        "Koden på etiketten passer ikke til serienummeret. Scan etiketten igen.",
        "The label's code does not belong to this serial. Read the label again.",
    ),
    "not_allowed_yet": Refusal(
        403,
        Then.ASK,
        "Enheten är känd men har ingen etikettkod hos oss. Be driften läsa in leveranslistan.",
        "Enheden er kendt, men har ingen etiketkode hos os. Bed driften indlæse leverancelisten.",
        "This device is known, but not its label. Ask operations to import the delivery's list.",
    ),
    "allowance_expired": Refusal(
        403,
        Then.ASK,
        "Tiden då enheten fick anslutas är slut. Be driften förlänga den.",
        "Fristen for at tilslutte enheden er udløbet. Bed driften forlænge den.",
        "The time in which this device could be set up is over. Ask operations to extend it.",
    ),
    "pending": Refusal(
        202,
        Then.WAIT,
        "Enheten väntar på att en tekniker säger var den sitter. Skanna etiketten med telefonen.",
        "Enheden venter på, at en tekniker angiver, hvor den sidder. Scan etiketten med telefonen.",
        "The device waits for a technician to say where it stands. Scan its label with the phone.",
    ),
    "unknown_claim": Refusal(
        403,
        Then.ASK,
        "Anslutningskoden är inte vår. Kontrollera att hela koden kom med, eller be om en ny.",
        "Tilslutningskoden er ikke vores. Kontrollér, at hele koden kom med, eller bed om en ny.",
        "This claim is not one of ours. Check that it was copied whole, or ask for a new one.",
    ),
    "claim_expired": Refusal(
        403,
        Then.ASK,
        "Anslutningskoden har gått ut. Be om en ny.",
        "Tilslutningskoden er udløbet. Bed om en ny.",
        "This claim has expired. Ask for a new one.",
    ),
    "claim_used": Refusal(
        403,
        Then.ASK,
        "Anslutningskoden är redan använd av en annan nyckel. Be om en ny.",
        "Tilslutningskoden er allerede brugt med en anden nøgle. Bed om en ny.",
        "This claim was used with another key already. Ask for a new one.",
    ),
    "voucher_bad": Refusal(
        403,
        Then.ASK,
        "Fullmakten är inte äkta eller skadad. Hämta en ny med telefonen.",
        "Fuldmagten er ikke ægte eller beskadiget. Hent en ny med telefonen.",
        "This voucher is damaged or not one of ours. Fetch a new one with the phone.",
    ),
    "voucher_expired": Refusal(
        403,
        Then.ASK,
        "Fullmakten gällde inte vid den tiden. Hämta en ny med telefonen.",
        "Fuldmagten gjaldt ikke på det tidspunkt. Hent en ny med telefonen.",
        "This voucher did not hold at that time. Fetch a new one with the phone.",
    ),
    "voucher_withdrawn": Refusal(
        403,
        Then.ASK,
        "Fullmakten är återkallad. Tala med driften.",
        "Fuldmagten er trukket tilbage. Tal med driften.",
        "This voucher was withdrawn. Talk to operations.",
    ),
    "voucher_spent": Refusal(
        403,
        Then.ASK,
        "Fullmakten är förbrukad. Hämta en ny med telefonen.",
        "Fuldmagten er brugt op. Hent en ny med telefonen.",
        "This voucher is used up. Fetch a new one with the phone.",
    ),
    "other_organisation": Refusal(
        403,
        Then.ASK,
        "Enheten hör till en annan organisation än platsen. Tala med driften.",
        "Enheden tilhører en anden organisation end stedet. Tal med driften.",
        "The device belongs to another organisation than the place. Talk to operations.",
    ),
    "wrong_kind": Refusal(
        409,
        Then.ASK,
        "Mätpunkten är avsedd för en annan sorts enhet. Välj rätt mätpunkt.",
        "Målepunktet er til en anden slags enhed. Vælg det rigtige målepunkt.",
        "The spot takes another kind of device. Choose the right spot.",
    ),
    "reenrol_required": Refusal(
        409,
        Then.ASK,
        "Enheten är redan ansluten med en annan nyckel. En tekniker måste skanna etiketten först.",
        "Enheden er tilsluttet med en anden nøgle. En tekniker skal først scanne etiketten.",
        "The device is enrolled with another key. A technician has to scan its label first.",
    ),
    "device_not_admitted": Refusal(
        403,
        Then.ASK,
        "Enheten är spärrad eller utmönstrad. Tala med driften.",
        "Enheden er spærret eller udgået. Tal med driften.",
        "This device is blocked or was taken out of service. Talk to operations.",
    ),
    "too_many": Refusal(
        429,
        Then.WAIT,
        "För många felaktiga försök. Vänta en stund.",
        "For mange forkerte forsøg. Vent lidt.",
        "Too many failed attempts. Wait a while.",
    ),
    "unavailable": Refusal(
        503,
        Then.WAIT,
        "Servern kan inte svara just nu. Enheten försöker igen av sig själv.",
        "Serveren kan ikke svare lige nu. Enheden prøver igen af sig selv.",
        "The server cannot answer just now. The device tries again by itself.",
    ),
    # what a device meets that renews its certificate
    "no_certificate": Refusal(
        401,
        Then.GIVE_UP,
        "Förnyelse kräver enhetens eget certifikat. Anslut enheten på nytt.",
        "Fornyelse kræver enhedens eget certifikat. Tilslut enheden på ny.",
        "A renewal takes the device's own certificate. Enrol the device again.",
    ),
    "certificate_unknown": Refusal(
        403,
        Then.ASK,
        "Certifikatet är inte utfärdat här. Anslut enheten på nytt.",
        "Certifikatet er ikke udstedt her. Tilslut enheden på ny.",
        "This certificate was not issued here. Enrol the device again.",
    ),
    "certificate_revoked": Refusal(
        403,
        Then.ASK,
        "Certifikatet är spärrat. Tala med driften, eller anslut enheten på nytt.",
        "Certifikatet er spærret. Tal med driften, eller tilslut enheden på ny.",
        "This certificate was revoked. Talk to operations, or enrol the device again.",
    ),
    "certificate_replaced": Refusal(
        403,
        Then.ASK,
        "Certifikatet är redan ersatt av ett nyare. Anslut enheten på nytt.",
        "Certifikatet er allerede erstattet af et nyere. Tilslut enheden på ny.",
        "This certificate was replaced by a newer one. Enrol the device again.",
    ),
    "grace_over": Refusal(
        403,
        Then.ASK,
        "Certifikatet gick ut för över 180 dagar sedan. Anslut enheten på nytt.",
        "Certifikatet udløb for over 180 dage siden. Tilslut enheden på ny.",
        "This certificate ended over 180 days ago. Enrol the device again.",
    ),
    "key_used": Refusal(
        409,
        Then.GIVE_UP,
        "Nyckeln har redan haft ett certifikat. Enheten gör en ny av sig själv.",
        "Nøglen har allerede haft et certifikat. Enheden laver en ny af sig selv.",
        "This key had a certificate before. The device makes another by itself.",
    ),
    "renewal_too_early": Refusal(
        409,
        Then.WAIT,
        "Certifikatet gäller och behöver inte förnyas än. Ingenting behöver göras.",
        "Certifikatet gælder og skal ikke fornyes endnu. Der skal ikke gøres noget.",
        "The certificate holds and need not be renewed yet. Nothing has to be done.",
    ),
    # what a device meets that is updated
    "report_not_own": Refusal(
        403,
        Then.WAIT,
        "Rapporten är inte undertecknad med enhetens nyckel. Enheten frågar igen av sig själv.",
        "Rapporten er ikke signeret med enhedens nøgle. Enheden spørger igen af sig selv.",
        "The report is not signed with the device's own key. The device asks again by itself.",
    ),
    "no_such_file": Refusal(
        404,
        Then.GIVE_UP,
        "Filen finns inte för den här enheten. Ingenting behöver göras.",
        "Filen findes ikke for denne enhed. Der skal ikke gøres noget.",
        "There is no such file for this device. Nothing has to be done.",
    ),
    "site_busy": Refusal(
        429,
        Then.WAIT,
        "Platsens andra enheter hämtar just nu. Enheten fortsätter av sig själv.",
        "Stedets andre enheder henter lige nu. Enheden fortsætter af sig selv.",
        "Other devices of this site are fetching just now. The device goes on by itself.",
    ),
    # what only technicians meet
    "unknown_spot": Refusal(
        404,
        Then.ASK,
        "Mätpunkten finns inte. Välj en ur listan.",
        "Målepunktet findes ikke. Vælg et fra listen.",
        "There is no such spot. Choose one from the list.",
    ),
    "unknown_site": Refusal(
        404,
        Then.ASK,
        "Platsen finns inte. Välj en ur listan.",
        "Stedet findes ikke. Vælg et fra listen.",
        "There is no such site. Choose one from the list.",
    ),
    "no_such_claim": Refusal(
        404,
        Then.ASK,
        "Uppdraget finns inte. Skanna etiketten igen.",
        "Opgaven findes ikke. Scan etiketten igen.",
        "There is no such claim. Scan the label again.",
    ),
    "claim_over": Refusal(
        409,
        Then.ASK,
        "Uppdraget är avslutat. Skanna etiketten igen för att börja om.",
        "Opgaven er afsluttet. Scan etiketten igen for at begynde forfra.",
        "This claim is over. Scan the label again to begin anew.",
    ),
    "claimed_by_another": Refusal(
        409,
        Then.ASK,
        "En annan tekniker håller på med enheten. Ta bara över med ett skäl.",
        "En anden tekniker er i gang med enheden. Overtag kun med en begrundelse.",
        "Another technician is at work on this device. Take it over only with a reason.",
    ),
    "spot_taken": Refusal(
        409,
        Then.ASK,
        "På mätpunkten sitter redan en enhet. Säg att den byts ut, eller välj en annan mätpunkt.",
        "Der sidder allerede en enhed på målepunktet. Angiv, at den udskiftes, eller vælg et nyt.",
        "A device stands at this spot already. Say that it is replaced, or choose another spot.",
    ),
    "not_replaceable": Refusal(
        409,
        Then.ASK,
        "Enheten som ska bytas ut sitter inte på mätpunkten. Kontrollera serienumret.",
        "Enheden, der skal udskiftes, sidder ikke på målepunktet. Kontrollér serienummeret.",
        "The device to be replaced does not stand at this spot. Check its serial.",
    ),
    "stands_elsewhere": Refusal(
        409,
        Then.ASK,
        "Enheten sitter på en annan mätpunkt. Flytta den bara med ett skäl.",
        "Enheden sidder på et andet målepunkt. Flyt den kun med en begrundelse.",
        "The device stands at another spot. Move it only with a reason.",
    ),
    "bad_time": Refusal(
        409,
        Then.ASK,
        "Tiden passar inte: i framtiden, för långt tillbaka eller före en senare ändring.",
        "Tidspunktet passer ikke: i fremtiden, for langt tilbage eller før en senere ændring.",
        "That time will not do: it is in the future, too long ago, or before a later change.",
    ),
    "act_differs": Refusal(
        409,
        Then.GIVE_UP,
        "Telefonen har redan skickat något annat under samma nummer.",
        "Telefonen har allerede sendt noget andet under samme nummer.",
        "The phone has sent something else under the same number already.",
    ),
    "bad_voucher_terms": Refusal(
        400,
        Then.GIVE_UP,
        "En fullmakt gäller högst 24 timmar och 20 enheter.",
        "En fuldmagt gælder højst 24 timer og 20 enheder.",
        "A voucher holds for 24 hours and 20 devices at most.",
    ),
}


def refused(code: str) -> RefusedError:
    """Return the error of a row of the table, with its sentence in English."""
    return RefusedError(code, TABLE[code].en)


def language(accepted: str) -> Language:
    """Return the first of our languages that an Accept-Language header names; English if none."""
    for part in accepted.split(","):
        match part.partition(";")[0].strip().partition("-")[0].lower():
            case "sv":
                return "sv"
            case "da":
                return "da"
            case "en":
                return "en"
            case _:
                continue
    return "en"
