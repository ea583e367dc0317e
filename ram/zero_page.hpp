// SPDX-License-Identifier: Apache-2.0
//
// Is a page all zero? Asked for every page sent, so it uses the widest instructions the CPU has, chosen when the
// program starts, and looks at a few scattered words first: most pages that are not zero show it there.
// Never asked about holes: reading one allocates it.
#pragma once

#include <cstddef>
#include <string_view>

namespace migrationd::ram {

// How far ahead of its look a scan asks for memory.
inline constexpr std::size_t zero_prefetch_pages = 8;

// `page`: 4096 bytes, at least 8-byte aligned. May race with a writer; the answer then is about some mixture.
bool is_zero_page(const std::byte* page) noexcept;

// "avx512", "avx2" or "baseline", for logs and benches.
std::string_view zero_page_method() noexcept;

}  // namespace migrationd::ram
