//! The functions of the language: one table with their names and what they take.

/// A function that an expression may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `if(condition, a, b)`; the side not taken may be missing
    If,
    /// `coalesce(a, b, …)`: the first that is present, else the status of the first
    Coalesce,
    /// `present(a)`: whether `a` is there; never missing itself
    Present,
    /// `abs(x)`
    Abs,
    /// `min(a, b, …)`
    Min,
    /// `max(a, b, …)`
    Max,
    /// `clip(x, low, high)`: `min(max(x, low), high)`
    Clip,
    /// `log1p(x)`: the natural logarithm of `1 + x`
    Log1p,
    /// `bucket(x, [b1, b2, …])`: how many of the rising bounds are at or below `x`
    Bucket,
    /// `hour(t)`: 0 to 23, UTC
    Hour,
    /// `day_of_week(t)`: 1 (Monday) to 7, UTC
    DayOfWeek,
    /// `day_of_month(t)`: 1 to 31, UTC
    DayOfMonth,
    /// `month(t)`: 1 to 12, UTC
    Month,
    /// `hours_between(a, b)`: hours from `a` to `b`, below 0 where `b` is earlier
    HoursBetween,
}

impl Function {
    /// Every function, in the order of the documentation.
    pub const ALL: [Self; 14] = [
        Self::If,
        Self::Coalesce,
        Self::Present,
        Self::Abs,
        Self::Min,
        Self::Max,
        Self::Clip,
        Self::Log1p,
        Self::Bucket,
        Self::Hour,
        Self::DayOfWeek,
        Self::DayOfMonth,
        Self::Month,
        Self::HoursBetween,
    ];

    /// The name in an expression.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::If => "if",
            Self::Coalesce => "coalesce",
            Self::Present => "present",
            Self::Abs => "abs",
            Self::Min => "min",
            Self::Max => "max",
            Self::Clip => "clip",
            Self::Log1p => "log1p",
            Self::Bucket => "bucket",
            Self::Hour => "hour",
            Self::DayOfWeek => "day_of_week",
            Self::DayOfMonth => "day_of_month",
            Self::Month => "month",
            Self::HoursBetween => "hours_between",
        }
    }

    /// The function of that name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| function.as_str() == name)
    }

    /// The fewest and the most arguments; `bucket`'s list is not counted.
    pub(super) fn arguments(self) -> [usize; 2] {
        match self {
            Self::If | Self::Clip => [3, 3],
            Self::Coalesce | Self::Min | Self::Max => [2, 16],
            Self::HoursBetween => [2, 2],
            _ => [1, 1],
        }
    }
}
