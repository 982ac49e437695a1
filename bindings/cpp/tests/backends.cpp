#include "check.hpp"

#include <map>
#include <mutex>
#include <utility>

namespace {

struct ByBytes {
    bool operator()(const kvkeep_backend_key& a, const kvkeep_backend_key& b) const {
        return std::memcmp(&a, &b, sizeof a) < 0;
    }
};

/// A store in C++: what the functions of the vtable get as `backend`.
struct Table {
    const kvkeep_backend_host* host = nullptr;
    std::mutex mutex;
    std::map<kvkeep_backend_key, std::pair<std::vector<std::byte>, std::vector<std::byte>>, ByBytes> objects;
    bool closed = false;

    void complete(std::uint64_t request, const std::vector<std::int32_t>& statuses,
                  const std::vector<std::uint64_t>& sizes = {}) const {
        kvkeep_backend_answer answer;
        KVKEEP_INIT(&answer);
        answer.statuses = statuses.data();
        answer.sizes = sizes.empty() ? nullptr : sizes.data();
        answer.count = statuses.size();
        CHECK(host->complete(request, &answer) == KVKEEP_OK);
    }

    template <class Item, class Do>
    void each(std::uint64_t request, const Item* items, std::size_t count, Do&& step) {
        std::vector<std::int32_t> statuses;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            for (std::size_t i = 0; i < count; ++i) statuses.push_back(step(items[i]));
        }
        complete(request, statuses);
    }
};

Table& of(void* backend) { return *static_cast<Table*>(backend); }

kvkeep_backend_vtable vtable_of(Table& table) {
    kvkeep_backend_vtable vtable;
    KVKEEP_INIT(&vtable);
    vtable.name = "table";
    vtable.userdata = &table;
    vtable.open = [](void* userdata, const kvkeep_backend_parameter*, std::size_t, const kvkeep_backend_host* host,
                     void** backend, char*, std::size_t) -> std::int32_t {
        of(userdata).host = host;
        *backend = userdata;
        return KVKEEP_OK;
    };
    vtable.lookup = [](void* backend, std::uint64_t request, const kvkeep_backend_key* keys, std::size_t count,
                       std::uint32_t, std::uint32_t) {
        std::vector<std::int32_t> statuses;
        std::vector<std::uint64_t> sizes;
        {
            const std::lock_guard<std::mutex> lock(of(backend).mutex);
            for (std::size_t i = 0; i < count; ++i) {
                const auto found = of(backend).objects.find(keys[i]);
                const bool there = found != of(backend).objects.end();
                statuses.push_back(there ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND);
                sizes.push_back(there ? found->second.second.size() : 0);
            }
        }
        of(backend).complete(request, statuses, sizes);
    };
    vtable.load = [](void* backend, std::uint64_t request, const kvkeep_backend_object* objects, std::size_t count,
                     std::uint32_t) {
        of(backend).each(request, objects, count, [&](const kvkeep_backend_object& object) -> std::int32_t {
            const auto found = of(backend).objects.find(object.key);
            if (found == of(backend).objects.end()) return KVKEEP_ERR_NOT_FOUND;
            std::memcpy(object.header, found->second.first.data(), KVKEEP_OBJECT_HEADER_BYTES);
            std::memcpy(object.data, found->second.second.data(), object.size);
            return KVKEEP_OK;
        });
    };
    vtable.store = [](void* backend, std::uint64_t request, const kvkeep_backend_object* objects, std::size_t count,
                      std::uint32_t) {
        of(backend).each(request, objects, count, [&](const kvkeep_backend_object& object) -> std::int32_t {
            const auto *header = static_cast<const std::byte*>(object.header),
                       *data = static_cast<const std::byte*>(object.data);
            const auto stored = of(backend).objects.try_emplace(
                object.key, std::vector<std::byte>(header, header + KVKEEP_OBJECT_HEADER_BYTES),
                std::vector<std::byte>(data, data + object.size));
            return stored.second ? KVKEEP_OK : KVKEEP_ERR_EXISTS;
        });
    };
    vtable.remove = [](void* backend, std::uint64_t request, const kvkeep_backend_key* keys, std::size_t count,
                       std::uint32_t) {
        of(backend).each(request, keys, count, [&](const kvkeep_backend_key& key) -> std::int32_t {
            return of(backend).objects.erase(key) ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND;
        });
    };
    vtable.close = [](void* backend) { of(backend).closed = true; };
    return vtable;
}

void a_store_in_cpp_serves_the_clients_of_its_process() {
    Table table;
    const Directory directory;
    const std::string socket = "unix://" + directory.url().substr(5, directory.url().find('?') - 5) + "/s";
    {
        auto options = small();
        options.listen = socket;
        kvk::Cache cache(options);
        cache.add_backend(vtable_of(table), "threads=2");
        cache.serve_clients();
        auto space = space_of(cache);
        const auto keys = some_keys(8);
        {
            auto writer = space.session("writer");
            store(writer, keys, 4096);
        }
        CHECK(cache.flush(watchdog));
        CHECK(table.objects.size() == keys.size());
        CHECK(cache.clear() == keys.size());

        kvk::Options of_client;
        of_client.connect = socket;
        kvk::Cache client(of_client);
        auto reader = space_of(client).session("reader");
        CHECK(reader.prefetch_future(keys).completion.get().hit_chunks == keys.size());
        const auto views = reader.get_views(keys);
        for (std::size_t i = 0; i < keys.size(); ++i) check_content(views[i], i, 4096);
        CHECK(thrown([&] { client.add_backend(vtable_of(table)); }).status() == kvk::Status::unsupported);
    }
    CHECK(table.closed);
}

void a_vtable_without_a_function_is_refused() {
    Table table;
    auto vtable = vtable_of(table);
    vtable.store = nullptr;
    kvk::Cache cache(small());
    CHECK(thrown([&] { cache.add_backend(vtable); }).status() == kvk::Status::invalid);
}

void a_function_gives_the_keys_of_a_backend() {
    auto options = small();
    options.key_callback = [](void* userdata, const char* name, std::uint32_t number,
                              std::uint8_t* key) -> std::int32_t {
        if (name != std::string("tenant") || number > 0) return KVKEEP_ERR_NOT_FOUND;
        ++*static_cast<int*>(userdata);
        std::memset(key, 7, 32);
        return KVKEEP_OK;
    };
    int given = 0;
    options.key_userdata = &given;
    options.backend_urls = {"memory:?key_from=tenant"};
    const kvk::Cache cache(options);
    CHECK(given == 1);
    CHECK(thrown([&] { cache.add_backend("memory:?key_from=other"); }).status() == kvk::Status::not_found);
}

}  // namespace

int main() {
    a_store_in_cpp_serves_the_clients_of_its_process();
    a_vtable_without_a_function_is_refused();
    a_function_gives_the_keys_of_a_backend();
}
