// What may stand for an array, and that the header can be included in more than one unit.
#include "check.hpp"

#if __cplusplus >= 202002L
#include <span>
#endif

static_assert(!std::is_copy_constructible_v<kvk::Cache> && !std::is_copy_constructible_v<kvk::Session>);
static_assert(std::is_nothrow_move_constructible_v<kvk::Cache> && std::is_nothrow_move_assignable_v<kvk::Session>);
static_assert(!std::is_convertible_v<const std::vector<kvk::Key>&, kvk::Span<kvk::Key>>);
static_assert(!std::is_convertible_v<std::vector<kvk::Key>&, kvk::Span<const kvkeep_key>>);

static std::size_t count(kvk::Span<const std::uint32_t> numbers) { return numbers.size(); }

int main() {
    const std::vector<std::uint32_t> vector(3);
    const std::array<std::uint32_t, 4> array{};
    std::uint32_t plain[5] = {};
    CHECK(count(vector) == 3 && count(array) == 4 && count(plain) == 5 && count({plain, 2}) == 2);
#if __cplusplus >= 202002L
    CHECK(count(std::span<const std::uint32_t>(plain)) == 5);
#endif
}
