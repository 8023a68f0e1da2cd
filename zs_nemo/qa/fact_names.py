"""Hand-checked tables for the facts world: what the source packages spell wrongly, leave out or dispute."""

CAPITAL_ALIASES: dict[str, tuple[str, ...]] = {
    "US": ("Washington, D.C.", "Washington DC"),
    "UA": ("Kiev",),
    "IN": ("Delhi",),
    "MX": ("Ciudad de México",),
    "CN": ("Peking",),
    "CH": ("Berne",),
    "KZ": ("Nur-Sultan",),
    "MD": ("Kishinev",),
    "YE": ("Sana'a",),
    "MN": ("Ulan Bator", "Ulaanbaatar"),
    "TM": ("Ashkhabad",),
    "KW": ("Kuwait",),
    "GT": ("Guatemala",),
    "PA": ("Panama",),
    "SO": ("Muqdisho",),
}
"""Other spellings that a reader would accept, by ISO code."""

COUNTRY_ALIASES: dict[str, tuple[str, ...]] = {
    "US": ("USA", "U.S."),
    "GB": ("UK", "Great Britain", "Britain"),
    "AE": ("UAE",),
    "CZ": ("Czech Republic", "Czechia"),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa"),
    "CG": ("Congo", "Congo-Brazzaville"),
    "MK": ("Macedonia",),
    "TR": ("Turkiye",),
    "NL": ("Holland",),
    "TL": ("East Timor",),
    "CV": ("Cape Verde",),
    "KR": ("Korea",),
    "GM": ("Gambia",),
    "VN": ("Viet Nam",),
    "RU": ("Russian Federation",),
    "SZ": ("Swaziland",),
}

DISCOVERERS: dict[str, tuple[str, ...]] = {
    "Henry Cavendish": ("Henry Cavendish",),
    "Johann Arfwedson": ("Johan August Arfwedson",),
    "Sir H. Davy, J.L. Gay-Lussac, L.J. Thénard": (
        "Humphry Davy",
        "Joseph Louis Gay-Lussac",
        "Louis Jacques Thénard",
    ),
    "Daniel Rutherford": ("Daniel Rutherford",),
    "Joseph Priestly, Carl Wilhelm Scheele": ("Joseph Priestley", "Carl Wilhelm Scheele"),
    "Henri Moissan": ("Henri Moissan",),
    "Sir William Ramsey, M.W. Travers": ("William Ramsay", "Morris Travers"),
    "Sir William Ramsay; M. W. Travers": ("William Ramsay", "Morris Travers"),
    "Sir Humphrey Davy": ("Humphry Davy",),
    "Hans Christian Oersted": ("Hans Christian Oersted",),
    "Jöns Berzelius": ("Jöns Jacob Berzelius",),
    "Hennig Brand": ("Hennig Brand",),
    "Carl Wilhelm Scheele": ("Carl Wilhelm Scheele",),
    "Sir William Ramsey, Baron Rayleigh": ("William Ramsay", "Lord Rayleigh"),
    "Lars Nilson": ("Lars Fredrik Nilson",),
    "William Gregor": ("William Gregor",),
    "Louis Vauquelin": ("Louis Nicolas Vauquelin",),
    "George Brandt": ("Georg Brandt",),
    "Axel Cronstedt": ("Axel Cronstedt",),
    "Paul Émile Lecoq de Boisbaudran": ("Paul Émile Lecoq de Boisbaudran",),
    "Clemens Winkler": ("Clemens Winkler",),
    "Antoine J. Balard": ("Antoine Balard",),
    "R. Bunsen, G. Kirchoff": ("Robert Bunsen", "Gustav Kirchhoff"),
    "Gustov Kirchoff, Robert Bunsen": ("Robert Bunsen", "Gustav Kirchhoff"),
    "Johann Gadolin": ("Johan Gadolin",),
    "Martin Klaproth": ("Martin Klaproth",),
    "Charles Hatchet": ("Charles Hatchett",),
    "Carlo Perrier, Émillo Segrè": ("Carlo Perrier", "Emilio Segrè"),
    "Karl Klaus": ("Karl Klaus",),
    "William Wollaston": ("William Wollaston",),
    "Fredrich Stromeyer": ("Friedrich Stromeyer",),
    "Ferdinand Reich, T. Richter": ("Ferdinand Reich", "Theodor Richter"),
    "Franz Müller von Reichenstein": ("Franz Müller von Reichenstein",),
    "Bernard Courtois": ("Bernard Courtois",),
    "Carl Mosander": ("Carl Gustaf Mosander",),
    "C.F. Aver von Welsbach": ("Carl Auer von Welsbach",),
    "J.A. Marinsky, L.E. Glendenin, C.D. Coryell": ("Jacob Marinsky", "Lawrence Glendenin", "Charles Coryell"),
    "Eugène Demarçay": ("Eugène-Anatole Demarçay",),
    "Jean de Marignac": ("Jean Charles Galissard de Marignac",),
    "Per Theodor Cleve": ("Per Teodor Cleve",),
    "Dirk Coster, Georg von Hevesy": ("Dirk Coster", "George de Hevesy"),
    "Anders Ekeberg": ("Anders Ekeberg",),
    "Fausto and Juan José de Elhuyar": ("Juan José Elhuyar", "Fausto Elhuyar"),
    "Walter Noddack, Ida Tacke, Otto Berg": ("Walter Noddack", "Ida Tacke", "Otto Berg"),
    "Smithson Tenant": ("Smithson Tennant",),
    "Sir William Crookes": ("William Crookes",),
    "Pierre and Marie Curie": ("Marie Curie", "Pierre Curie"),
    "D.R.Corson, K.R.MacKenzie, E.Segré": ("Dale Corson", "Kenneth MacKenzie", "Emilio Segrè"),
    "Fredrich Ernst Dorn": ("Friedrich Ernst Dorn",),
    "Marguerite Derey": ("Marguerite Perey",),
    "André Debierne": ("André-Louis Debierne",),
    "E.M. McMillan, P.H. Abelson": ("Edwin McMillan", "Philip Abelson"),
}
"""mendeleev's text -> the discoverers as an encyclopedia names them. A text that is not here gives no question."""

DISPUTED_DISCOVERY = frozenset(
    {"He", "Be", "Mg", "V", "Mn", "Y", "Sr", "Ce", "Tb", "Ho", "Lu", "Pt", "Ir", "Pa", "Te"}
    | {"No", "Rf", "Db", "Sg", "Bh", "Lv", "Ts"}
)
"""Elements whose discovery the source has wrong or historians dispute: no questions about it."""

MISPLACED_DISCOVERY = frozenset({"Ar"})
"""Elements whose discoverers are right but whose place is not: no question about the place."""

DISCOVERY_YEARS: dict[str, int] = {"Nd": 1885}
"""Corrections of the year."""

DISCOVERY_COUNTRIES: dict[str, tuple[str, str]] = {
    "England": ("England", "GB"),
    "Great Britain": ("England", "GB"),
    "Sweden": ("Sweden", "SE"),
    "Germany": ("Germany", "DE"),
    "France": ("France", "FR"),
    "Denmark": ("Denmark", "DK"),
    "Italy": ("Italy", "IT"),
    "Spain": ("Spain", "ES"),
    "Austria": ("Austria", "AT"),
    "Russia": ("Russia", "RU"),
    "Japan": ("Japan", "JP"),
    "Switzerland": ("Switzerland", "CH"),
    "United States": ("the United States", "US"),
}
"""mendeleev's place -> how a sentence calls it, and its country today. Places that are several are left out."""

ELEMENT_ALIASES: dict[str, tuple[str, ...]] = {"Al": ("Aluminium",), "Cs": ("Caesium",), "S": ("Sulphur",)}

WITH_ARTICLE = frozenset(
    ("US", "GB", "AE", "NL", "PH", "CD", "CG", "CF", "DO", "MH", "SB", "KM", "MV", "BS", "GM", "SC")
)
"""Countries that a sentence names with "the"."""
